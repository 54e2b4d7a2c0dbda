"""The memory predicted for a batch, against what a process takes: never less."""

import json
import subprocess
import sys

import pytest
from neuron_attribution_server.model.loading.demo import DemoUnavailableError, demo_folder
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

pytestmark = pytest.mark.process

MEASURE = r"""
import json, re, sys
from pathlib import Path
from dataclasses import asdict
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

def resident(field):
    return 1024 * int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

engine = load_engine(LoadSettings("demo", threads=2))
requests, tokens = map(int, sys.argv[1:])
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: loading has one of its own
loaded = resident("VmRSS")
ids = tuple(1000 + position % 977 for position in range(tokens))
engine.run([AttributeTask(token_ids=ids, explained=(ExplainedToken(tokens - 1),))] * requests)
print(json.dumps({"taken": resident("VmHWM") - loaded, "memory": asdict(engine.facts.memory)}))
"""


@pytest.mark.parametrize(("requests", "tokens"), [(1, 1024), (8, 64)])
def test_a_batch_takes_at_most_what_was_predicted(requests, tokens):
    try:
        demo_folder()
    except DemoUnavailableError as error:
        pytest.skip(f"no demo model: {error}")
    output = subprocess.check_output([sys.executable, "-c", MEASURE, str(requests), str(tokens)], text=True)
    measured = json.loads(output)
    task = AttributeTask(token_ids=tuple(range(tokens)), explained=(ExplainedToken(tokens - 1),))
    predicted = MemoryCost(**measured["memory"]).batch([task] * requests)
    assert measured["taken"] < predicted < 2**31
