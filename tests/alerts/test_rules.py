"""Alert rules: well formed, each with a firing and a quiet case, a severity, words for people and a runbook."""

import shutil
import subprocess

import grpc
import pytest
import yaml
from alerts.documents import ALERTS, PROMETHEUS, RECORDS, selectors
from neuron_attribution.errors import ResourceExhaustedError
from neuron_attribution_server.front_end.observability.rpc_metrics import code_name

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
CASES = [
    case
    for test in yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    for case in test["alert_rule_test"]
]
CODES = {code_name(code) for code in grpc.StatusCode}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing; Debian's package prometheus has it")
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "rules.yaml"), ("check", "config", "prometheus.yaml"), ("test", "rules", "rules_test.yaml")],
    ids=" ".join,
)
def test_prometheus_itself_accepts(command):
    finished = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_seen_firing_and_seen_quiet(alert):
    outcomes = {bool(case["exp_alerts"]) for case in CASES if case["alertname"] == alert}
    assert outcomes == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_how_urgent_it_is_what_it_is_and_what_to_do(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


@pytest.mark.parametrize("ratio", ["errors", "slow"])
def test_a_ratio_is_the_same_over_every_window(ratio):
    expressions = {
        window: RECORDS[f"job_namespace:neuron_attribution_{ratio}:ratio_rate{window}"] for window in WINDOWS
    }
    assert len({text.replace(f"[{window}]", "[WINDOW]") for window, text in expressions.items()}) == 1


def test_codes_and_reasons_are_those_of_the_service():
    chosen = [matchers for expression in RECORDS.values() for _, matchers in selectors(expression)]
    codes = {code for matchers in chosen if "grpc_code" in matchers for code in matchers["grpc_code"].split("|")}
    assert codes < CODES
    refused = [
        matchers["reason"]
        for _, matchers in selectors(ALERTS["NeuronAttributionRefusingCalls"]["expr"])
        if "reason" in matchers
    ]
    assert refused == [ResourceExhaustedError.default_reason]
