"""How results show themselves: at a Python prompt, in a notebook, with rich, as a data frame, as a page.

A result imports nothing that draws it. Each way of drawing is a function of the result's type; the package's own
`__init__` registers what `display` and `report` have for it.
"""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx
    import pandas
    from rich.console import RenderableType


class Displayed:
    """A result that shows itself: in one line, as tables in a notebook or with rich, as a data frame."""

    __slots__ = ()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a component, in order, under named columns. Needs the extra `pandas`."""
        return data_frame(self)

    def __repr__(self) -> str:
        return summary(self)

    def __rich__(self) -> RenderableType:
        return rich_tables(self)

    def _repr_html_(self) -> str:
        return html_tables(self)


@singledispatch
def summary(result: object) -> str:
    """A result in one line, with its type."""
    raise _nothing_draws(result)


@singledispatch
def rich_tables(result: object) -> RenderableType:
    """A result's tables under its summary, for a terminal."""
    raise _nothing_draws(result)


@singledispatch
def html_tables(result: object) -> str:
    """A result's tables under its summary, for a notebook."""
    raise _nothing_draws(result)


@singledispatch
def data_frame(result: object) -> pandas.DataFrame:
    """A result's rows."""
    raise _nothing_draws(result)


@singledispatch
def page(result: object) -> str:
    """A result as one self-contained HTML page."""
    raise _nothing_draws(result)


@singledispatch
def json_text(result: object) -> str:
    """A result as protobuf JSON."""
    raise _nothing_draws(result)


@singledispatch
def edge_data_frame(result: object) -> pandas.DataFrame:
    """A graph's edges, one a row."""
    raise _nothing_draws(result)


@singledispatch
def node_link(result: object) -> dict[str, Any]:
    """A graph as the nodes and links that networkx reads."""
    raise _nothing_draws(result)


@singledispatch
def network(result: object) -> networkx.DiGraph:
    """A graph as one of networkx."""
    raise _nothing_draws(result)


@singledispatch
def circuit_tracer_json(result: object, slug: str, node_threshold: float, edge_threshold: float) -> dict[str, Any]:
    """A graph as circuit-tracer writes its own."""
    raise _nothing_draws(result)


def _nothing_draws(result: object) -> TypeError:
    return TypeError(f"nothing is registered that draws {type(result).__name__}")
