"""The memory predicted for a batch, against what a process takes: never less, and not wastefully more."""

import json
import subprocess
import sys

import pytest
from neuron_attribution_server.demo import DemoUnavailableError, demo_folder
from neuron_attribution_server.tasks import AttributeTask, ExplainedToken, MemoryCost

MEASURE = """
import json, resource, sys
from dataclasses import asdict
from neuron_attribution_server.config import LoadSettings
from neuron_attribution_server.models import load_engine
from neuron_attribution_server.tasks import AttributeTask, ExplainedToken

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

engine = load_engine(LoadSettings("demo", threads=2))
loaded, (requests, tokens) = peak(), map(int, sys.argv[1:])
ids = tuple(1000 + position % 977 for position in range(tokens))
engine.run([AttributeTask(token_ids=ids, explained=(ExplainedToken(tokens - 1),))] * requests)
print(json.dumps({"taken": peak() - loaded, "memory": asdict(engine.facts.memory)}))
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
    assert measured["taken"] < predicted < max(8 * measured["taken"], 2**30)
