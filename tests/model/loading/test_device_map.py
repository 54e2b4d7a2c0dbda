"""Models spread over devices: here main memory and disk, for every family; the answers are those of the whole model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from examples import few
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import AttributeOptions, Direction, Intervention, LayerPart, LayerPartKind, Scale, Side
from neuron_attribution_server.model.architectures.parameters import read_on
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.settings.config import ConfigurationError, LoadSettings, read_config
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, ProjectTask
from reference.compare_answers import assert_same
from reference.saved_models import saved
from reference.tiny_families import TINY_FAMILIES, tiny_family

pytestmark = pytest.mark.process

PART = 0.85
"""What main memory may hold of a model: less than all, and more than accelerate keeps free for what it fetches."""
LONG, SHORT = (45, 73, 93, 18, 59, 56, 90, 10), (17, 4, 33)
OPTIONS = AttributeOptions(direction=Direction.BOTH, query_sources=8, position_projection_top_k=2)
GENERATES_ONLY_WHOLE = ("recurrent_gemma",)
"""transformers reads weights of these beside the modules that have them, step by step, and they are not fetched."""

EMBEDDED_IN_PLACE = ("llama4_text",)
"""transformers moves the tokens to where these models' embeddings are, which must be the device."""


def tasks(engine):
    """Attributions, and an intervention in the last layer that has heads and the first that has an FFN."""
    layers = engine.facts.layers
    head = next(number for number, layer in reversed(list(enumerate(layers))) if layer.heads)
    ffn = next(number for number, layer in enumerate(layers) if layer.ffn_width or layer.experts)
    generate = 0 if engine.facts.family in GENERATES_ONLY_WHOLE else 2
    changed = Intervention(Scale(2), heads=(Head(head, 0),), layers=(LayerPart(ffn, LayerPartKind.FFN),))
    explained = () if generate else (ExplainedToken(2),)
    return [
        AttributeTask(token_ids=LONG, explained=(ExplainedToken(7, 5), ExplainedToken(3)), options=OPTIONS),
        AttributeTask(token_ids=SHORT, explained=explained, generate=generate, options=OPTIONS),
        InterveneTask(token_ids=LONG, sets=((changed,),), generate=generate),
    ]


def answers(engine):
    *attributions, intervened = engine.run(tasks(engine))
    return [explanation for outcome in attributions for explanation in outcome.explanations], intervened


def assert_same_answers(spread, whole):
    (explained, intervened), (expected, expected_intervened) = answers(spread), answers(whole)
    for ours, theirs in zip(explained, expected, strict=True):
        assert_same(ours, theirs)
    assert intervened.results == expected_intervened.results


@pytest.mark.parametrize("name", few([name for name in TINY_FAMILIES if name not in EMBEDDED_IN_PLACE], 8))
def test_a_family_whose_weights_are_elsewhere_answers_the_same(name: str) -> None:
    """No weight is on the device but while its module runs or scoring reads it."""
    model = cpu_offload(tiny_family(name), torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    read_on(model, torch.device("cpu"))
    assert_same_answers(engine_from(model), engine_from(tiny_family(name)))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mixtral", *EMBEDDED_IN_PLACE])
def test_transformers_spreads_a_checkpoint_over_memory_and_disk(name: str, tmp_path) -> None:
    folder = str(saved(tmp_path / "model", name))
    size = Path(folder, "model.safetensors").stat().st_size // 1000
    spread = load_engine(LoadSettings(folder, device_map="auto", device_memory=f"cpu={PART * size:.0f}KB"))
    assert set(spread._view.model.hf_device_map.values()) == {"cpu", "disk"}
    whole = load_engine(LoadSettings(folder))
    assert_same_answers(spread, whole)
    expert = 0 if whole.facts.layers[0].experts else None
    for side, through in ((Side.SUBVALUE, None), (Side.SUBKEY, None), (Side.SUBVALUE, Head(1, 1))):
        neurons = (FfnNeuron(0, 3, expert), AttentionNeuron(0, 0, 2))
        task = ProjectTask(neurons=neurons[: 1 if through else 2], side=side, through=through)
        assert spread.run([task]) == whole.run([task])


def test_a_model_that_one_device_holds_is_read_in_place(tmp_path) -> None:
    folder = str(saved(tmp_path / "model"))
    engine = load_engine(LoadSettings(folder, device_map="auto"))
    layer = engine._view.layers[0]
    places = layer.attention_subvalues.each(lambda rows: torch.tensor([rows.data_ptr()]))
    assert places.tolist() == [layer.attention_output.weight.data_ptr()]


TENSOR_PARALLEL = """
import sys
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.loading.models import engine_from
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], distributed_config=DistributedConfig(tp_plan="auto"))
try:
    engine_from(model)
except FailedPreconditionError as error:
    print(error.reason, error.message)
"""


def test_a_tensor_parallel_plan_is_refused_by_name(tmp_path) -> None:
    """Two processes, each with half of every matrix."""
    folder = str(saved(tmp_path / "model"))
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TENSOR_PARALLEL, folder],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in processes:
        printed, errors = process.communicate(timeout=120)
        assert printed.startswith("TENSOR_PARALLEL model refused: it is loaded by a tensor parallel plan"), errors
        assert "--device-map auto" in printed


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"device_map": "tensor_parallel"}, "'tensor_parallel' is not one of auto, balanced, balanced_low_0"),
        ({"device_map": "auto", "device": "cuda:0"}, "leave device at auto"),
        ({"device_memory": "cpu=1GiB"}, "device_memory without device_map"),
        ({"device_map": "auto", "device_memory": "much"}, "'much' is not such as cuda:0=20GiB"),
    ],
)
def test_wrong_settings_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read_config({"model": "demo", **flags}, {})
