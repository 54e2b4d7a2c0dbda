"""Results as pandas data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuron_attribution.display.extras import needs_extra
from neuron_attribution.display.records import INTEGERS, Records, edge_records, records
from neuron_attribution.traces import Trace

if TYPE_CHECKING:
    import pandas


def data_frame(result: object) -> pandas.DataFrame:
    """The rows of a result. Whole numbers that some rows lack are of the type Int64, with NA."""
    return _frame(records(result))


def edge_data_frame(trace: Trace) -> pandas.DataFrame:
    """The edges of a graph."""
    return _frame(edge_records(trace))


def _frame(table: Records) -> pandas.DataFrame:
    with needs_extra("pandas", "to_dataframe"):
        import pandas

    frame = pandas.DataFrame(list(table.rows), columns=list(table.columns))
    return frame.astype({name: "Int64" for name in table.columns if name in INTEGERS})
