"""Chat templates, compiled as transformers compiles them: jinja2's immutable sandbox with the same extensions.

A template is compiled a second time with a call at the beginning and the end of every loop's turn, from which it shows
which message a text was written for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TURN_BEGINS, TURN_ENDS = "_turn_begins_", "_turn_ends_"
"""What the second kind of template calls: with what the loop is at, or None; and with nothing. Both are shown."""


@lru_cache(maxsize=8)
def plain(source: str) -> Callable[[dict[str, Any]], Iterable[str]]:
    """What writes the pieces of a template's text for its variables. Raises TemplateError."""
    return _ENVIRONMENT.from_string(source).generate


@lru_cache(maxsize=8)
def with_turns(source: str) -> Callable[[dict[str, Any]], Iterable[str]]:
    """The same for a template that tells of the turns of its loops."""
    tree = _ENVIRONMENT.parse(source)
    _tell_turns(tree)
    tree.set_environment(_ENVIRONMENT)
    code = _ENVIRONMENT.compile(tree)
    return _ENVIRONMENT.template_class.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None)).generate


def _tell_turns(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if not isinstance(value, list):
            continue
        told: list[Any] = []
        for each in value:
            if isinstance(each, nodes.Break | nodes.Continue):
                told.append(_shown(TURN_ENDS, [], each.lineno))
            told.append(each)
        setattr(node, field, told)
    for child in list(node.iter_child_nodes()):
        _tell_turns(child)
    if isinstance(node, nodes.For):
        at = nodes.Name(node.target.name, "load") if isinstance(node.target, nodes.Name) else nodes.Const(None)
        begin, end = _shown(TURN_BEGINS, [at], node.lineno), _shown(TURN_ENDS, [], node.lineno)
        node.body = [begin, *node.body, end]


def _shown(function: str, arguments: list[nodes.Expr], line: int) -> nodes.Output:
    call = nodes.Call(nodes.Name(function, "load"), arguments, [], None, None)
    shown = nodes.Output([call])
    shown.set_lineno(line)
    return shown


class _Generation(Extension):
    """`{% generation %}`, which marks what the assistant says: it is written as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> nodes.CallBlock:
        """Its body is called as a block of its own, as transformers does it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_written"), [], [], body)
        block.set_lineno(line)
        return block

    def _written(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict` without the attributes of Python's own."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:  # noqa: ANN401 - what templates give
        return dict(*pairs, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:  # noqa: ANN401 - what templates give
        """As Python's."""
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """jinja2's, without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 - `namespace(self=…)` is allowed
        self, *pairs = arguments
        attributes = dict(*pairs, **named)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401 - what templates give
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute that begins with an underscore, such as {name!r}")


class Refusal(TemplateError):
    """What a template itself says against a conversation."""


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


_ENVIRONMENT = _environment()
