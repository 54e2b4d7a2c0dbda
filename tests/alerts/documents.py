"""The rules, the dashboard and the runbooks, as the tests read them."""

import json
from pathlib import Path

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS, GRAFANA, RUNBOOKS = ROOT / "deploy/prometheus", ROOT / "deploy/grafana", ROOT / "docs/runbooks"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())

_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
RECORDS = {rule["record"]: rule["expr"] for rule in _RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in _RULES if "alert" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries(panel):
    """The panel's expressions as they are asked for all servers and a rate over a minute."""
    return [in_full(target["expr"]) for target in panel["targets"]]


def in_full(expression, job=".+", instance=".+", interval="1m"):
    """A panel's expression with Grafana's variables filled in."""
    for name, value in {"$job": job, "$instance": instance, "$__rate_interval": interval}.items():
        expression = expression.replace(name, value)
    return expression


def selectors(expression):
    """What an expression selects: pairs of a metric and its labels. Raises ValueError where it is no PromQL."""
    found = []

    def visit(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name: matcher.value for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found
