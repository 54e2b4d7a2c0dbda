"""What results can do besides holding values; the work is done by this package's other modules when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType


class Displayed:
    """A result that shows itself: in one line, as tables in a notebook or with rich, as a data frame."""

    __slots__ = ()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a component, in order, under named columns. Needs the extra `pandas`."""
        from neuron_attribution.display.frames import data_frame

        return data_frame(self)

    def __repr__(self) -> str:
        from neuron_attribution.display.summaries import summary

        return summary(self)

    def __rich__(self) -> RenderableType:
        from neuron_attribution.display.rich_text import group
        from neuron_attribution.display.tables import tables

        return group(repr(self), tables(self))

    def _repr_html_(self) -> str:
        from neuron_attribution.display.html import html_text
        from neuron_attribution.display.tables import tables

        return html_text(repr(self), tables(self))
