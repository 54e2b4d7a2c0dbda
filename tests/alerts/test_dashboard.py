"""The dashboard's JSON: as its description makes it, laid out without overlap, every panel explained."""

import subprocess
import sys
from itertools import combinations

import pytest
from alerts.documents import DASHBOARD, GRAFANA, PANELS, queries, selectors

COLUMNS = 24


def test_the_json_is_what_the_description_makes():
    made = subprocess.run([sys.executable, GRAFANA / "dashboard.py"], capture_output=True, text=True, check=True)
    remedy = "run: python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json"
    assert made.stdout == (GRAFANA / "dashboard.json").read_text(), remedy


def test_data_source_jobs_and_instances_are_chosen_by_variables():
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}
    sources = [item["datasource"]["uid"] for panel in PANELS for item in (panel, *panel["targets"])]
    assert set(sources) == {"${datasource}"}


def test_ids_are_unique_and_panels_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= COLUMNS for place in places)
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]


def overlap(one, other):
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_a_title_a_unit_a_description_and_valid_queries(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target, query in zip(panel["targets"], queries(panel), strict=True):
        assert "$" not in query
        for name, matchers in selectors(query):
            assert name == "ALERTS" or {"job", "instance"} <= set(matchers), target["expr"]
