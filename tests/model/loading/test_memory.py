"""The memory predicted for a batch, against what a process takes: never less.

Most of a prediction for a small model is what batches of any size take; what each token and source takes is measured by
the differences between batches.
"""

import json
import subprocess
import sys

import pytest
from neuron_attribution_server.model.loading.sources.demo import DemoUnavailableError, demo_folder
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


TAKEN = r"""
import ctypes, json, re, sys
from pathlib import Path
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

def resident(field):
    return 1024 * int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

def taken(tasks):
    "In the second of two runs: the first one takes what libraries keep."
    for _ in range(2):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        outcomes = engine.run(tasks)
        assert not [each for each in outcomes if isinstance(each, Exception)], outcomes
    return resident("VmHWM") - before
"""

GROWTH = (
    TAKEN
    + r"""
from neuron_attribution.requests import AttributeOptions, Part
from transformers import LlamaConfig, LlamaForCausalLM

facts = json.loads(sys.argv[1])
parts, rows, sources = frozenset(map(Part, facts["parts"])), facts["rows"], facts["sources"]
config = LlamaConfig(num_attention_heads=2, num_key_value_heads=2, vocab_size=97, max_position_embeddings=256,
                     bos_token_id=None, eos_token_id=None, **facts["config"])
engine = engine_from(LlamaForCausalLM(config))
found = {}
for row in rows:
    for source in sources:
        options = AttributeOptions(parts=parts, query_sources=source, projection_top_k=0)
        explained = tuple(ExplainedToken(position) for position in range(2, 2 + row))
        task = AttributeTask(token_ids=tuple(position % 97 for position in range(2 + row)), explained=explained,
                             options=options)
        found[f"{row} {source}"] = taken([task]), engine.facts.memory.batch([task])
print(json.dumps(found))
"""
)


MIXERS = (
    TAKEN
    + r"""
from transformers import BambaConfig, BambaForCausalLM

config = BambaConfig(num_hidden_layers=2, attn_layer_indices=[1], hidden_size=64, intermediate_size=32, vocab_size=97,
                     num_attention_heads=2, num_key_value_heads=2, mamba_n_heads=32, mamba_d_state=64, mamba_n_groups=1,
                     bos_token_id=None, eos_token_id=None, pad_token_id=None)
engine = engine_from(BambaForCausalLM(config))
found = []
for requests, tokens in json.loads(sys.argv[1]):
    task = AttributeTask(token_ids=tuple(range(tokens)), explained=(ExplainedToken(tokens - 1),))
    found.append([taken([task] * requests), engine.facts.memory.batch([task] * requests)])
print(json.dumps(found))
"""
)


def test_what_recurrent_mixers_take_is_predicted():
    """Of a state space that computes 256 positions of a sequence at once, however short it is."""
    batches = [(1, 16), (8, 16), (1, 96)]
    output = subprocess.check_output([sys.executable, "-c", MIXERS, json.dumps(batches)], text=True)
    (one, predicted_of_one), (eight, predicted_of_eight), _ = json.loads(output)
    grown, predicted = eight - one, predicted_of_eight - predicted_of_one
    print(json.loads(output))
    assert predicted / 4 < grown < predicted


def growth(config, parts, rows, sources):
    """What a batch takes and is predicted to take, in bytes, by the explained tokens and the query sources of each."""
    facts = {"config": config, "parts": parts, "rows": rows, "sources": sources}
    output = subprocess.check_output([sys.executable, "-c", GROWTH, json.dumps(facts)], text=True)
    found = json.loads(output)
    return {tuple(map(int, key.split())): tuple(sizes) for key, sizes in found.items()}


def test_what_each_explained_token_takes_is_predicted():
    """Of a model with far more neurons than anything else: half a mebibyte of them for each token."""
    wide = {"num_hidden_layers": 8, "hidden_size": 32, "intermediate_size": 16384}
    found = growth(wide, ["query-ffn-neurons"], [64, 128], [4])
    (few_taken, few_predicted), (many_taken, many_predicted) = found[64, 4], found[128, 4]
    grown, predicted = many_taken - few_taken, many_predicted - few_predicted
    assert predicted / 4 < grown < predicted


def test_what_a_thousand_query_sources_take_is_predicted():
    """Their vectors and keys, not the components at their positions, of which each has 0.4 MiB."""
    deep = {"num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 32}
    found = growth(deep, ["query-layers"], [1], [10, 1000])
    taken, predicted = (many - few for many, few in zip(found[1, 1000], found[1, 10], strict=True))
    assert 0.2 * predicted < taken < predicted
