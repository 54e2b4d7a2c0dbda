"""How results show themselves: at a Python prompt, in a notebook, with rich, as a data frame, as a page.

A result imports nothing that draws it. Each way of drawing is a function of the result's type; the package's own
`__init__` registers what `display` and `report` have for it.
"""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def _nothing_draws(result: object) -> TypeError:
    return TypeError(f"nothing is registered that draws {type(result).__name__}")
