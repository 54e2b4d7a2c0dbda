"""One self-contained HTML file: scripts, styles and data in it, nothing loaded, and nothing else in it may run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Any

LIBRARIES = ("d3.min.js", "plot.umd.min.js")
MODULES = (
    "text.js",
    "elements.js",
    "charts.js",
    "quantities.js",
    "conversation.js",
    "prompt.js",
    "layers.js",
    "heads.js",
    "zeroing.js",
    "neurons.js",
    "queries.js",
    "conditions.js",
    "maps.js",
    "sums.js",
    "answer.js",
    "attribution.js",
    "comparison.js",
    "graph.js",
    "layout.js",
    "drawing.js",
    "trace.js",
    "page.js",
)

PLOT_STYLE = """:where(.plot) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot text),
:where(.plot tspan) {
  white-space: pre;
}"""
"""The style sheet Observable Plot puts into each chart: the policy allows it by its hash."""


def page(title: str, view: str, data: Mapping[str, Any], text: str) -> str:
    """A page that shows `data` by the view of that name (page.js); `text` is HTML to read without scripts."""
    libraries, program, style = (vendored(LIBRARIES), script(MODULES), asset("page.css"))
    return Template(asset("page.html")).substitute(
        title=html.escape(title),
        policy=html.escape(_policy((*libraries, program), (style, PLOT_STYLE))),
        style=style,
        text=text,
        data=embedded_json({"view": view, "version": f"neuron-attribution {version('neuron-attribution')}", **data}),
        scripts="\n".join([*map("<script>{}</script>".format, libraries), f'<script type="module">{program}</script>']),
    )


def embedded_json(data: object) -> str:
    """JSON that ends no script element and holds no character but ASCII."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def script(names: Sequence[str]) -> str:
    """Scripts of ours as one module."""
    return "\n".join(map(asset, names))


@cache
def asset(name: str) -> str:
    """A file of ours."""
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


@cache
def vendored(names: tuple[str, ...]) -> tuple[str, ...]:
    """Libraries, as they were published."""
    return tuple((files(__package__) / "vendor" / name).read_text(encoding="utf-8") for name in names)


def source_hash(text: str) -> str:
    """A script or style as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    allowed = {"script-src": scripts, "style-src": styles}
    sources = "; ".join(f"{name} {' '.join(map(source_hash, texts))}" for name, texts in allowed.items())
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
