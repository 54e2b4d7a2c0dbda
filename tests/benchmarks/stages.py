"""Where the time goes: timers around every function of the engine's modules, put there from outside for a while."""

import functools
import importlib
import inspect
import pkgutil
import sys
import time
from collections import defaultdict
from contextlib import contextmanager

import neuron_attribution_server

from benchmarks import markdown
from benchmarks.timing import progress, settled, spread, synchronize

ROOT = neuron_attribution_server.__name__
MODEL = f"{ROOT}.model."
WATCHED = ("attribution.", "engine.explanation.", "capture.capture")
SMALLEST_SHARE = 0.01


class Tree:
    """Seconds of every chain of watched calls."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self._chain = ()

    def watched(self, name, call):
        @functools.wraps(call)
        def timed(*args, **kwargs):
            outer, self._chain = self._chain, (*self._chain, name)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                synchronize()
                self.seconds[self._chain] += time.perf_counter() - start
                self._chain = outer

        return timed


@contextmanager
def watching():
    """Every function and method of the watched modules goes through a timer; all is put back afterwards."""
    tree, undo = Tree(), []
    modules = _modules()
    users = [module for name, module in sys.modules.items() if name.startswith(ROOT)]
    try:
        for module in modules:
            for owner, name, call, wrap in _calls(module):
                timer = wrap(tree.watched(f"{module.__name__.removeprefix(MODEL)}.{call.__qualname__}", call))
                places = [owner] if inspect.isclass(owner) else users
                undo += [_replace(place, each, timer) for place in places for each in _names(place, owner, name)]
        yield tree
    finally:
        for place, name, original in reversed(undo):
            setattr(place, name, original)


def _names(place, owner, name):
    """Under which names a place knows the call."""
    original = vars(owner)[name]
    return [known for known, value in list(vars(place).items()) if value is original]


def _replace(place, name, value):
    original = vars(place)[name]
    setattr(place, name, value)
    return place, name, original


def _modules():
    package = importlib.import_module(MODEL.rstrip("."))
    names = [each.name for each in pkgutil.walk_packages(package.__path__, MODEL)]
    wanted = tuple(MODEL + name for name in WATCHED)
    return [importlib.import_module(name) for name in names if name.startswith(wanted)]


def _calls(module):
    """Owner, name, function and what it is wrapped in, of everything callable that a module defines."""
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not inspect.isgeneratorfunction(value):
            if not hasattr(value, "__wrapped__"):
                yield module, name, value, lambda timer: timer
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            yield from _methods(value)


def _methods(owner):
    for name, value in list(vars(owner).items()):
        if inspect.isfunction(value) and (name == "__init__" or not name.startswith("__")):
            if not inspect.isgeneratorfunction(value):
                yield owner, name, value, lambda timer: timer
        elif isinstance(value, property) and value.fget is not None:
            yield owner, name, value.fget, property


def measure(subject, prompts, top_k):
    """Seconds per prompt of every chain of calls, and of the whole."""
    progress(f"profile at top {top_k}")
    whole = 0.0
    with watching() as tree, settled():
        for prompt in subject.prompts[:prompts]:
            subject.forget()
            start = time.perf_counter()
            subject.attribute([prompt], top_k=top_k)
            whole += time.perf_counter() - start
    return {chain: seconds / prompts for chain, seconds in tree.seconds.items()}, whole / prompts


def report(found, conditions):
    parts = []
    for top_k, (seconds, whole) in found.items():
        rows = [_row(chain, seconds, whole) for chain in _ordered(seconds) if seconds[chain] >= SMALLEST_SHARE * whole]
        header = ["stage", "ms a prompt", "share", "of it in itself"]
        parts += [f"### Top {top_k}: {1000 * whole:.0f} ms a prompt", markdown.table(header, rows)]
    text = (
        "Means over prompts with timers around every function of the engine, which cost time of their own: shares say "
        "more than milliseconds. A stage's own part is what no timed function below it took."
    )
    return markdown.section("Profile by stage", conditions, text, *parts)


def _ordered(seconds):
    """Depth first, the longest first."""

    def below(chain):
        inner = [each for each in seconds if each[:-1] == chain]
        for each in sorted(inner, key=seconds.get, reverse=True):
            yield each
            yield from below(each)

    return list(below(()))


def _row(chain, seconds, whole):
    own = seconds[chain] - sum(value for each, value in seconds.items() if each[:-1] == chain)
    indent = "&nbsp;" * 4 * (len(chain) - 1)
    mine = seconds[chain]
    return [f"{indent}`{chain[-1]}`", spread([1000 * mine]), f"{mine / whole:.0%}", f"{own / whole:.0%}"]
