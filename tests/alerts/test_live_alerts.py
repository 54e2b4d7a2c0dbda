"""Real servers with real faults under a real Prometheus: what whoever is on duty would see.

The rules are the delivered ones; only their waits (`for`) are five seconds, and everything is scraped and evaluated
each second. Windows stay, and rates take what there is of them. The tests share one night and follow each other.
"""

import math
import shutil

import pytest
from alerts.documents import ALERTS, PANELS, RECORDS, ROOT, in_full
from alerts.night import HEALTHY, NO_TARGETS, long_night
from alerts.troubles import TROUBLES
from neuron_attribution_server.model.loading.sources.demo import DemoUnavailableError, demo_folder

NOT_ON_THIS_SERVER = {"Certificate expires in"}

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing; Debian has a package of that name"
)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    try:
        demo_folder()
    except DemoUnavailableError as error:
        pytest.skip(f"no demo model: {error}")
    with long_night(tmp_path_factory.mktemp("night")) as night:
        yield night


def test_every_panel_shows_the_demo_model_under_load(night):
    for panel in PANELS:
        instance = ".+" if panel["title"] in NOT_ON_THIS_SERVER else night.metrics[HEALTHY]
        for target in panel["targets"]:
            query = in_full(target["expr"], instance=instance, interval="10s")
            if panel["title"] == "GPU memory":
                assert night.prometheus.query(query) == []
            else:
                night.until_query(query, shows_data)


def shows_data(samples):
    return any(not math.isnan(value) for _, value in samples)


def test_panels_show_what_is_so(night):
    def values(title, label):
        [panel] = [panel for panel in PANELS if panel["title"] == title]
        query = in_full(panel["targets"][0]["expr"], instance=night.metrics[HEALTHY], interval="10s")
        return {labels.get(label): value for labels, value in night.prometheus.query(query)}

    assert values("Ready servers", None) == {None: 1}
    assert values("Failed calls", None) == {None: 0}
    assert set(values("Stages, mean", "stage")) == {"tokenization", "forward", "scoring", "bound", "exact"}
    assert values("Neurons bounded", "part") == {"ffn": 1, "attention": 1}
    assert all(0 < value < 0.1 for value in values("Neurons scored", "part").values())
    assert set(values("Models", "model")) == {"SmolLM2-135M-Instruct"}
    assert values("Requests per batch", None)[None] >= 1


def test_every_fault_is_seen_firing(night):
    expected = {(name, alert) for name, trouble in TROUBLES.items() for alert in trouble.alerts}
    night.kill_worker("reload")
    for restarts in (1, 2, 3):
        night.kill_worker("restarts")
        restarted = f'neuron_attribution_worker_restarts_total{{namespace="restarts"}} == {restarts}'
        up = 'neuron_attribution_worker_up{namespace="restarts"} == 1'
        night.until_query(f"{restarted} and {up}")
    night.until(lambda: ("restarts", "NeuronAttributionWorkerCrashLoop") in night.seen)
    night.kill_worker("restarts")
    night.until(lambda: night.processes["restarts"].poll() is not None)
    assert night.processes["restarts"].returncode == 1
    night.until(lambda: expected <= night.seen)


def test_nothing_else_fires(night):
    """Above all nothing on the healthy server. How long its calls take depends on the machine, so that is left out."""
    for name, trouble in TROUBLES.items():
        seen = {alert for namespace, alert in night.seen if namespace == name}
        assert seen - trouble.by_the_way == trouble.alerts, name
    healthy = {alert for namespace, alert in night.seen if namespace == HEALTHY}
    assert not {alert for alert in healthy if "Latency" not in alert}
    assert NO_TARGETS not in night.seen


def test_the_logs_say_what_the_runbooks_quote(night):
    for name, trouble in TROUBLES.items():
        log = night.logs[name].read_text()
        pages = {ALERTS[alert]["annotations"]["runbook_url"] for alert in trouble.alerts}
        runbooks = " ".join(" ".join((ROOT / page).read_text() for page in pages).split())
        assert all(words in log and words in runbooks for words in trouble.log), name


def test_every_rule_was_evaluated_without_an_error_and_every_recording_has_data(night):
    rules = [rule for group in night.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {*ALERTS, *RECORDS}
    assert {rule["health"] for rule in rules} == {"ok"}
    for record in RECORDS:
        assert shows_data(night.prometheus.query(record)), record


def test_without_targets_somebody_is_told(night):
    night.calls.close()
    night.prometheus.scrape({})
    night.until(lambda: NO_TARGETS in night.seen)


def test_no_alert_is_left_out():
    alerts = {alert for trouble in TROUBLES.values() for alert in trouble.alerts}
    assert alerts | {NO_TARGETS[1]} == set(ALERTS)
