"""Alerts and autoscaling: the rules are those of Prometheus, and what scales is asked for by queries that hold."""

import shutil
import subprocess
import sys

import pytest
import yaml
from deploy.manifests import KUBERNETES, ROOT, build_combination, needs_kubectl
from deploy.wiring_checks import METRIC
from neuron_attribution_server.settings.config import ServerConfig

ADAPTER = KUBERNETES / "prometheus-adapter.yaml"
RULE = KUBERNETES / "components" / "monitoring" / "prometheusrule.yaml"
NAMESPACE = "neuron-attribution"
# Samples of two minutes; their last minute has the mean 2000, whether or not the sample at its start counts.
MEAN_2000 = "0x3 2000 0x2 8000"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing; Debian's package prometheus has it"
)


def test_the_operators_rules_are_those_of_prometheus():
    generator = KUBERNETES / "prometheus_rule.py"
    made = subprocess.run([sys.executable, generator], capture_output=True, text=True, check=True)
    remedy = f"run: python {generator.relative_to(ROOT)} > {RULE.relative_to(ROOT)}"
    assert made.stdout == RULE.read_text(), remedy
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    assert yaml.safe_load(RULE.read_text())["spec"] == rules


@pytest.fixture
def adapter():
    [rule] = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    return rule


@pytest.fixture
def scaled_object(tmp_path):
    [scaled] = build_combination(tmp_path, ("keda",)).of_kind("ScaledObject")
    return scaled["spec"]


@pytest.fixture
def autoscaler(tmp_path_factory):
    [scaler] = build_combination(tmp_path_factory.mktemp("hpa"), ("hpa",)).of_kind("HorizontalPodAutoscaler")
    return scaler["spec"]


@needs_kubectl
def test_both_autoscalers_do_the_same(autoscaler, scaled_object):
    [trigger], [metric] = scaled_object["triggers"], autoscaler["metrics"]
    batch = str(ServerConfig(model="any").batch_tokens)
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"] == batch
    assert (scaled_object["minReplicaCount"], scaled_object["maxReplicaCount"]) == (
        autoscaler["minReplicas"],
        autoscaler["maxReplicas"],
    )
    assert scaled_object["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["behavior"]


def test_the_adapter_gives_the_metric_its_name(adapter):
    assert adapter["name"] == {"matches": f"^{METRIC}$", "as": METRIC}
    assert adapter["resources"]["overrides"] == {name: {"resource": name} for name in ("namespace", "pod")}


@needs_promtool
@needs_kubectl
def test_the_queries_give_a_minutes_mean(adapter, scaled_object, tmp_path):
    """One pod's queue has been full for long, the other's has just filled up; a third is elsewhere."""
    rendered = adapter["metricsQuery"]
    matchers = f'namespace="{NAMESPACE}",pod=~"a|b"'
    for name, value in {"Series": METRIC, "LabelMatchers": matchers, "GroupBy": "pod"}.items():
        rendered = rendered.replace(f"<<.{name}>>", value)
    per_pod = {'{pod="a"}': 8000, '{pod="b"}': 2000}
    [trigger] = scaled_object["triggers"]
    evaluate(tmp_path, {rendered: per_pod, trigger["metadata"]["query"]: {"{}": 10_000}})
    listed = {series("a"): 8000, series("b"): 8000, series("c", "elsewhere"): 4000}
    evaluate(tmp_path, {adapter["seriesQuery"]: listed})


def series(pod, namespace=NAMESPACE):
    return f'{METRIC}{{namespace="{namespace}", pod="{pod}"}}'


def evaluate(folder, expected):
    """Have Prometheus evaluate queries at two minutes; `expected` has the values by labels, by query."""
    values = {series("a"): "8000x8", series("b"): MEAN_2000, series("c", "elsewhere"): "4000x8"}
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": text} for name, text in values.items()],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "2m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
            }
            for query, samples in expected.items()
        ],
    }
    file = folder / "queries.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    finished = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
