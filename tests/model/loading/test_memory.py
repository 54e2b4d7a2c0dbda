"""The memory predicted for a batch, against what a process takes: never less.

Most of a prediction for a small model is what batches of any size take; what each token and source takes is measured by
the differences between batches.
"""

import json
import subprocess
import sys

import pytest
from neuron_attribution.requests import ALL_PARTS
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


GROWTH = r"""
import ctypes, gc, json, re, sys
from pathlib import Path
from neuron_attribution.requests import AttributeOptions, Part
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution.traces import TraceOptions
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, TraceTask
from transformers import BambaConfig, BambaForCausalLM, LlamaConfig, LlamaForCausalLM

def resident(field):
    return 1024 * int(re.search(field + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])

def taken(engine, tasks):
    "In the second of two runs: the first one takes what libraries keep."
    for _ in range(2):
        gc.collect()  # a model before this one
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        outcomes = engine.run(tasks)
        assert not [each for each in outcomes if isinstance(each, Exception)], outcomes
    return resident("VmHWM") - before

def growth(config, parts, rows, sources):
    engine = engine_from(LlamaForCausalLM(LlamaConfig(
        num_attention_heads=2, num_key_value_heads=2, vocab_size=97, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=None, **config)))
    found = {}
    for row in rows:
        for source in sources:
            options = AttributeOptions(parts=frozenset(map(Part, parts)), query_sources=source, projection_top_k=0)
            explained = tuple(ExplainedToken(position) for position in range(2, 2 + row))
            task = AttributeTask(token_ids=tuple(position % 97 for position in range(2 + row)), explained=explained,
                                 options=options)
            found[f"{row} {source}"] = taken(engine, [task]), engine.facts.memory.batch([task])
    return found

def mixers(batches):
    config = BambaConfig(
        num_hidden_layers=2, attn_layer_indices=[1], hidden_size=64, intermediate_size=32, vocab_size=97,
        num_attention_heads=2, num_key_value_heads=2, mamba_n_heads=32, mamba_d_state=64, mamba_n_groups=1,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    engine = engine_from(BambaForCausalLM(config))
    found = []
    for requests, tokens in batches:
        task = AttributeTask(token_ids=tuple(range(tokens)), explained=(ExplainedToken(tokens - 1),))
        found.append([taken(engine, [task] * requests), engine.facts.memory.batch([task] * requests)])
    return found

def traces(config, tokens):
    engine = engine_from(LlamaForCausalLM(LlamaConfig(
        num_attention_heads=8, num_key_value_heads=2, vocab_size=97, max_position_embeddings=1024, bos_token_id=None,
        eos_token_id=None, **config)))
    found = []
    for length in tokens:
        task = TraceTask(token_ids=tuple(position % 97 for position in range(length)),
                         explained=(ExplainedToken(length - 1),), options=TraceOptions(nodes=16, projection_top_k=0))
        found.append([taken(engine, [task]), engine.facts.memory.batch([task])])
    return found

def long(config, explained, tokens, asked):
    "Of the last tokens of a long prompt, with how often the model ran; and of its forward pass alone."
    engine = engine_from(LlamaForCausalLM(LlamaConfig(
        num_attention_heads=2, num_key_value_heads=2, vocab_size=97, max_position_embeddings=max(tokens),
        bos_token_id=None, eos_token_id=None, **config)))
    passes = []
    engine._view.body.register_forward_hook(lambda *_: passes.append(1))
    memory, found = engine.facts.memory, {"per_stream_token": engine.facts.memory.per_stream_token}
    for length in tokens:
        ids = tuple(position % 97 for position in range(length))
        for name, options in asked.items() if length == max(tokens) else list(asked.items())[:1]:
            options = AttributeOptions(parts=frozenset(map(Part, options["parts"])), **options["others"])
            rows = tuple(ExplainedToken(position) for position in range(length - explained, length))
            task = AttributeTask(token_ids=ids, explained=rows, options=options)
            passes.clear()
            found[f"{name} {length}"] = taken(engine, [task]), memory.batch([task]), len(passes) / 2
        alone = InterveneTask(token_ids=ids, sets=())
        found[f"alone {length}"] = taken(engine, [alone]), memory.batch([alone]), 1
    return found

asked = json.loads(sys.argv[1])
print(json.dumps({name: globals()[function](**facts) for name, (function, facts) in asked.items()}))
"""
WIDE = {"num_hidden_layers": 8, "hidden_size": 32, "intermediate_size": 16384}
DEEP = {"num_hidden_layers": 24, "hidden_size": 2048, "intermediate_size": 32}
TRACED = {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 2048}
SLIM = {"num_hidden_layers": 4, "hidden_size": 512, "head_dim": 32, "intermediate_size": 64}
END = {
    "heads and neurons": {
        "parts": ["layers", "heads", "ffn-value-neurons", "attention-value-neurons"],
        "others": {"attention_neurons_over_positions": True},
    },
    "everything": {"parts": [part.value for part in ALL_PARTS], "others": {"attention_neurons_over_positions": True}},
}
MEASURED = {
    "long": ("long", {"config": SLIM, "explained": 30, "tokens": [512, 2048], "asked": END}),
    "mixers": ("mixers", {"batches": [(1, 16), (8, 16), (1, 96)]}),
    "wide": ("growth", {"config": WIDE, "parts": ["query-ffn-neurons"], "rows": [64, 128], "sources": [4]}),
    "traces": ("traces", {"config": TRACED, "tokens": [32, 512]}),
    "deep": ("growth", {"config": DEEP, "parts": ["query-layers"], "rows": [1], "sources": [10, 1000]}),
}


@pytest.fixture(scope="module")
def measured():
    """What batches take and are predicted to take, in bytes, all in one process that does nothing else.

    Of the models with a growing part by the explained tokens and the query sources of each.
    """
    return json.loads(subprocess.check_output([sys.executable, "-c", GROWTH, json.dumps(MEASURED)], text=True))


def test_what_recurrent_mixers_take_is_predicted(measured):
    """Of a state space that computes 256 positions of a sequence at once, however short it is."""
    (one, predicted_of_one), (eight, predicted_of_eight), _ = measured["mixers"]
    print(measured["mixers"])
    assert (predicted_of_eight - predicted_of_one) / 4 < eight - one < predicted_of_eight - predicted_of_one


def test_what_each_explained_token_takes_is_predicted(measured):
    """Of a model with far more neurons than anything else: half a mebibyte of them for each token."""
    grown, predicted = grown_by(measured["wide"], "64 4", "128 4")
    assert predicted / 4 < grown < predicted


def test_what_a_thousand_query_sources_take_is_predicted(measured):
    """Their vectors and keys, not the components at their positions, of which each has 0.4 MiB."""
    grown, predicted = grown_by(measured["deep"], "1 10", "1 1000")
    assert 0.2 * predicted < grown < predicted


def test_what_a_trace_takes_is_predicted(measured):
    """Of each token every neuron frozen and what gradients need, of each pair of positions attention weights."""
    (few, predicted_of_few), (many, predicted_of_many) = measured["traces"]
    print(measured["traces"])
    assert few < predicted_of_few
    assert (predicted_of_many - predicted_of_few) / 6 < many - few < predicted_of_many - predicted_of_few


@pytest.mark.parametrize("name", END)
def test_the_end_of_a_long_conversation_is_explained_in_one_pass_and_takes_what_was_predicted(measured, name):
    found = measured["long"]
    print({place: each for place, each in found.items() if place.startswith(name)})
    taken, predicted, passes = found[f"{name} 2048"]
    assert passes == 1
    assert taken < predicted


def test_what_is_read_of_explained_tokens_alone_is_kept_of_no_other(measured):
    """30 tokens of 2,048: beside the forward pass, a few of what the residual stream has at every position."""
    found = measured["long"]
    beside = found["heads and neurons 2048"][0] - found["alone 2048"][0]
    few = found["heads and neurons 512"][0] - found["alone 512"][0]
    print(beside, few)
    assert beside - few < 0.6 * found["per_stream_token"] * (2048 - 512)


def grown_by(found, few, many):
    """How much more the larger of two batches takes, and was predicted to take."""
    return (more - less for more, less in zip(found[many], found[few], strict=True))
