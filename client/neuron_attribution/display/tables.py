"""The tables of each kind of result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import singledispatch
from itertools import zip_longest

from neuron_attribution.comparisons import Comparison, HeadEffects
from neuron_attribution.display.attributions import (
    aggregate_tables,
    explanation_tables,
    head_tables,
    layer_rows,
    layer_tables,
    neuron_table,
    query_layer_table,
    ranking_table,
    token_table,
)
from neuron_attribution.display.comparisons import comparison_tables, head_effect_tables
from neuron_attribution.display.interventions import intervention_tables
from neuron_attribution.display.table import TextTable
from neuron_attribution.display.traces import trace_tables
from neuron_attribution.display.words import number, token_text
from neuron_attribution.results import (
    AggregateExplanation,
    AttributeResult,
    Explanation,
    HeadScore,
    InterveneResult,
    LayerScores,
    ModelInfo,
    NeuronProjection,
    NeuronRanking,
    NeuronScore,
    ProjectedToken,
    ProjectNeuronResult,
    QueryLayers,
    TokenizeResult,
)
from neuron_attribution.traces import Trace

_UNITS = {"maximum_wait": " s", "maximum_age": " s"}


@singledispatch
def tables(result: object) -> Sequence[TextTable]:
    """The tables of a result, one a part."""
    raise TypeError(f"{type(result).__name__} has no tables")


@tables.register
def _(result: AttributeResult) -> Sequence[TextTable]:
    explained = [table for item in result.explanations for table in explanation_tables(item, result.tokens)]
    together = aggregate_tables(result.aggregate, result.tokens) if result.aggregate else []
    return [token_table(result.tokens), *together, *explained]


@tables.register
def _(aggregate: AggregateExplanation) -> Sequence[TextTable]:
    return aggregate_tables(aggregate, ())


@tables.register
def _(explanation: Explanation) -> Sequence[TextTable]:
    return explanation_tables(explanation, ())


@tables.register
def _(ranking: NeuronRanking) -> Sequence[TextTable]:
    return [ranking_table("neurons", ranking)]


@tables.register
def _(score: NeuronScore) -> Sequence[TextTable]:
    return [neuron_table("neuron", [score])]


@tables.register
def _(layers: LayerScores) -> Sequence[TextTable]:
    return layer_tables(layers)


@tables.register
def _(head: HeadScore) -> Sequence[TextTable]:
    return head_tables("head", [head], ())


@tables.register
def _(layers: QueryLayers) -> Sequence[TextTable]:
    return [query_layer_table("query layers", layers)]


@tables.register
def _(result: ProjectNeuronResult) -> Sequence[TextTable]:
    return [table for item in result.projections for table in tables(item)]


@tables.register
def _(item: NeuronProjection) -> Sequence[TextTable]:
    rows = zip_longest(item.projection.top, item.projection.bottom)
    cells = [(*_projected_cells(top), *_projected_cells(bottom)) for top, bottom in rows]
    return [TextTable(f"neuron {item.neuron}", ("top", ">score", "bottom", ">score"), cells)]


@tables.register
def _(result: InterveneResult) -> Sequence[TextTable]:
    return intervention_tables(result)


@tables.register
def _(trace: Trace) -> Sequence[TextTable]:
    return trace_tables(trace)


@tables.register
def _(comparison: Comparison) -> Sequence[TextTable]:
    return comparison_tables(comparison)


@tables.register
def _(effects: HeadEffects) -> Sequence[TextTable]:
    return head_effect_tables(effects)


@tables.register
def _(result: TokenizeResult) -> Sequence[TextTable]:
    rows = [
        (str(position), str(item.token.id), token_text(item.token), str(item.start), str(item.end))
        for position, item in enumerate(result.tokens)
    ]
    columns = (">position", ">id", "token", ">first byte", ">end byte")
    if not result.origins:
        return [TextTable("tokens", columns, rows)]
    said = [
        ("" if each.message is None else str(each.message), each.role, "template" if each.template else "author")
        for each in result.origins
    ]
    together = [(*row, *more) for row, more in zip(rows, said, strict=True)]
    return [TextTable("tokens", (*columns, ">message", "role", "written by"), together)]


@tables.register
def _(info: ModelInfo) -> Sequence[TextTable]:
    invariants = [
        (item.name, f"{item.error:.1e}", f"{item.tolerance:.1e}", item.description) for item in info.invariants
    ]
    return [
        _named_numbers("sizes", asdict(info.sizes)),
        _named_numbers("limits", asdict(info.limits)),
        *([TextTable("layers", ("layers", "made of"), layer_rows(info.layers))] if info.layers else []),
        TextTable("invariants measured at load", ("name", ">error", ">tolerance", "property"), invariants),
    ]


def _projected_cells(token: ProjectedToken | None) -> tuple[str, str]:
    return ("", "") if token is None else (token_text(token.token), number(token.score))


def _named_numbers(title: str, values: dict[str, float]) -> TextTable:
    rows = [(name.replace("_", " "), f"{value:,}{_UNITS.get(name, '')}") for name, value in values.items()]
    return TextTable(title, ("name", ">value"), rows)
