"""Prints the Grafana dashboard: python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json"""

from __future__ import annotations

from string import Template
from typing import Any

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panels import ROWS, Panel

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECTED = 'job=~"$job", instance=~"$instance"'
_HEIGHTS = {"stat": 4, "table": 5, "timeseries": 8}
_BUILDERS = {"stat": stat.Panel, "table": table.Panel, "timeseries": timeseries.Panel}
_LABELS_ONLY = DataTransformerConfig(
    id_val="organize", options={"excludeByName": {"Time": True, "Value": True, "__name__": True}}
)
_EVERYTHING = VariableOption(text="All", value="$__all", selected=True)


def build() -> dashboard.Dashboard:
    """The dashboard: every row open, every panel on the chosen servers."""
    board = (
        dashboard.Dashboard("Neuron attribution")
        .uid("neuron-attribution")
        .description("What the attribution servers do, how well, and what holds them up.")
        .tags(["neuron-attribution"])
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "label_values(neuron_attribution_ready, job)"))
        .with_variable(_variable("instance", 'label_values(neuron_attribution_ready{job=~"$job"}, instance)'))
    )
    number = 0
    for title, panels in ROWS.items():
        number += 1
        board.with_row(dashboard.Row(title).id(number))
        for panel in panels:
            number += 1
            board.with_panel(_panel(panel).id(number))
    return board


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .query(query)
        .datasource(DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(_EVERYTHING)
    )


def _panel(panel: Panel) -> Any:  # noqa: ANN401 - the builders have no common class
    built = _BUILDERS[panel.kind]().title(panel.title).description(panel.description).unit(panel.unit)
    built.datasource(DATASOURCE).span(panel.width).height(_HEIGHTS[panel.kind])
    if panel.kind == "timeseries":
        built.min(0).fill_opacity(10)
    if panel.kind == "table":
        built.with_transformation(_LABELS_ONLY)
    if panel.most is not None:
        built.max(panel.most)
    if panel.colors:
        built.thresholds(_thresholds(panel.colors))
    for letter, (legend, expression) in zip("ABCD", panel.queries.items(), strict=False):
        built.with_target(_query(panel, legend, expression).ref_id(letter))
    return built


def _thresholds(colors: tuple[tuple[float, str], ...]) -> dashboard.ThresholdsConfig:
    (_, base), *others = colors
    steps = [Threshold(value=None, color=base), *(Threshold(value=value, color=color) for value, color in others)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _query(panel: Panel, legend: str, expression: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(Template(expression).safe_substitute(selected=SELECTED)).datasource(DATASOURCE)
    if panel.kind == "table":
        return query.instant().format(PromQueryFormat.TABLE)
    query.legend_format(legend)
    return query.instant() if panel.kind == "stat" else query.range()


if __name__ == "__main__":
    print(JSONEncoder(indent=2, sort_keys=True, ensure_ascii=False).encode(build().build()))
