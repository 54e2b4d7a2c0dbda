"""Quantized checkpoints: their matrices stay packed, and answers are those of the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examples import few
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import AttributeOptions, Direction, Intervention, LayerPart, LayerPartKind, Scale, Side
from neuron_attribution_server.model.architectures.packed import packings
from neuron_attribution_server.model.architectures.packed.modules import (
    Memo,
    PackedExperts,
    PackedLinear,
    tensor_bytes,
    unembedding_bytes,
    unpacked_bytes,
)
from neuron_attribution_server.model.architectures.packed.packings import PACKINGS, Form
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask, ProjectTask
from reference import packed_folders as folders
from reference.compare_answers import assert_same
from reference.compared import compare_dissected
from reference.saved_models import save_tokenizer
from safetensors.torch import load_file, save_file
from service.fakes import byte_level_tokenizer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import PreTrainedModel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
SAME = 1e-5
OPTIONS = AttributeOptions(direction=Direction.BOTH, query_sources=8)
TASK = AttributeTask(token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11), ExplainedToken(1)), options=OPTIONS)
INTERVENTION = InterveneTask(
    token_ids=(5, 9, 2, 77),
    sets=((Intervention(Scale(2), heads=(Head(1, 0),), layers=(LayerPart(0, LayerPartKind.FFN),)),),),
    generate=2,
)
CHECKPOINTS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "bitsandbytes 8 bit": lambda folder: folders.bitsandbytes_folder(folder, "llama", "8 bit"),
    "bitsandbytes 4 bit": lambda folder: folders.bitsandbytes_folder(folder, "gemma3", "4 bit"),
    "bitsandbytes nested": lambda folder: folders.bitsandbytes_folder(folder, "gpt2", "4 bit nested", torch.bfloat16),
    "FP8": lambda folder: folders.fp8_folder(folder, "biased"),
    "FP8 experts": folders.fp8_experts_folder,
    "FP8 shared expert": lambda folder: folders.fp8_experts_folder(folder, "qwen2_moe"),
    "GPTQ": lambda folder: folders.gptq_folder(folder, "llama", 4),
    "GPTQ 8 bit": lambda folder: folders.gptq_folder(folder, "biased", 8, "gptq_v2"),
    "GPTQ unembedding": lambda folder: folders.gptq_folder(folder, "llama", 4, unembedding=True),
    "AWQ": lambda folder: folders.awq_folder(folder, "gemma3"),
    "MXFP4": folders.mxfp4_folder,
}


SPREAD = ("bitsandbytes nested", "FP8 experts", "GPTQ unembedding", "MXFP4")
"""One of each way to hold packed parts: with nested scales, merged experts, a kept matrix, experts in one piece."""
BATCHED = ("bitsandbytes 8 bit", "FP8 shared expert", "MXFP4")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=few(CHECKPOINTS, 4))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[str, Engine]:
    """A folder with packed matrices, and the engine of the numbers that they stand for."""
    path = tmp_path_factory.mktemp("checkpoint")
    unpacked = CHECKPOINTS[request.param](path)
    return str(path / "packed"), engine_from(unpacked, byte_level_tokenizer())


def test_answers_are_those_of_the_unpacked_numbers(checkpoint) -> None:
    folder, plain = checkpoint
    packed = load_engine(LoadSettings(folder))
    assert_same_answers(packed, plain)
    model = packed._view.model
    assert unpacked_bytes(model, packed._view.device) > 0
    assert tensor_bytes(model) < 0.8 * tensor_bytes(plain._view.model)


@pytest.mark.parametrize("checkpoint", few(SPREAD), indirect=True)
def test_packed_matrices_are_spread_over_memory_and_disk(checkpoint) -> None:
    folder, plain = checkpoint
    size = Path(folder, "model.safetensors").stat().st_size // 1000
    spread = load_engine(LoadSettings(folder, device_map="auto", device_memory=f"cpu={0.85 * size:.0f}KB"))
    assert "disk" in spread._view.model.hf_device_map.values()
    assert_same_answers(spread, plain)


def assert_same_answers(packed, plain) -> None:
    experts = bool(plain.facts.sizes.experts)
    project = ProjectTask(neurons=(FfnNeuron(0, 3, 0 if experts else None), AttentionNeuron(0, 0, 2)), side=Side.SUBKEY)
    answers, expected = (engine.run([TASK, INTERVENTION, project]) for engine in (packed, plain))
    for ours, theirs in zip(answers[0].explanations, expected[0].explanations, strict=True):
        assert_same(ours, theirs, SAME)
        assert ours.ffn_value_neurons.coverage.exact
    assert answers[1].results == expected[1].results
    assert answers[2] == expected[2]


def test_no_two_matrices_are_unpacked_at_once(checkpoint, monkeypatch) -> None:
    """While it is loaded, in a pass, and while every neuron is scored."""
    folder, _ = checkpoint
    unpacked, most = [], 0

    def watched(unpack):
        def unpacked_alone(parts, form, empty):
            nonlocal most, unpacked
            found = unpack(parts, form, empty)
            if not found.is_meta:
                unpacked = [each for each in unpacked if not each.expired()] + [StorageWeakRef(found.untyped_storage())]
                most = max(most, len(unpacked))
            return found

        return unpacked_alone

    for name, packing in PACKINGS.items():
        monkeypatch.setitem(PACKINGS, name, replace(packing, unpack=watched(packing.unpack)))
    engine = load_engine(LoadSettings(folder))
    exhaustive = replace(TASK, options=replace(OPTIONS, exhaustive=True))
    for task in (TASK, exhaustive, INTERVENTION):
        (outcome,) = engine.run([task])
        assert not isinstance(outcome, Exception), outcome
    assert most == 1 + bool(unembedding_bytes(engine._view.model)), "an unembedding is kept"


def test_matrices_are_the_same_in_pieces_of_any_size(checkpoint, monkeypatch) -> None:
    model = load_engine(LoadSettings(checkpoint[0]))._view.model
    whole = matrices(model)
    assert whole
    for at_once in (1000, 1):
        monkeypatch.setattr(packings, "_AT_ONCE", at_once)
        for mine, theirs in zip(matrices(model), whole, strict=True):
            assert torch.equal(mine, theirs)


def matrices(model: PreTrainedModel) -> list[Tensor]:
    """Every matrix that is packed; of experts the last."""
    found = []
    for module in model.modules():
        if isinstance(module, PackedLinear):
            found.append(module.plain().weight)
        experts = [held for held in vars(module).values() if isinstance(held, PackedExperts)]
        found += [held[len(held) - 1].clone() for held in experts]
    return found


def test_a_matrix_that_is_still_held_is_not_written_over() -> None:
    """Another takes its place where nobody holds it: what a request inside another reads is none of the other's."""
    memo, form = Memo(), Form((2, 3), torch.bfloat16)
    held = memo.room(form, torch.device("cpu")).fill_(1)
    part = held[1:]
    del held
    other = memo.room(form, torch.device("cpu")).fill_(2)
    assert part.eq(1).all()
    place = other.data_ptr()
    del other
    smaller = memo.room(Form((1, 3), torch.float32), torch.device("cpu"))
    assert smaller.data_ptr() == place


@pytest.mark.parametrize("checkpoint", few(BATCHED), indirect=True)
def test_batches_answer_as_single_prompts_do_to_the_bit(checkpoint) -> None:
    engine = load_engine(LoadSettings(checkpoint[0]))
    other = replace(TASK, token_ids=(77, 1, 30, 6, 5, 9), reproducible=True)
    tasks = [replace(TASK, reproducible=True), other]
    for together, task in zip(engine.run(tasks), tasks, strict=True):
        (alone,) = engine.run([task])
        for got, want in zip(together.explanations, alone.explanations, strict=True):
            assert_same(got, want, tolerance=0.0)


def test_half_precision_is_what_the_numbers_are_rounded_to(tmp_path) -> None:
    folders.gptq_folder(tmp_path, "llama", 4).save_pretrained(tmp_path / "unpacked")
    save_tokenizer(tmp_path / "unpacked")
    engines = [load_engine(LoadSettings(str(tmp_path / each), dtype="bfloat16")) for each in ("packed", "unpacked")]
    assert_same_answers(*engines)


def test_packed_weights_give_the_scores_of_the_definition(tmp_path) -> None:
    compared = compare_dissected(folders.bitsandbytes_folder(tmp_path, "llama", "4 bit"), "quantised")
    object.__setattr__(compared, "engine", load_engine(LoadSettings(str(tmp_path / "packed"))))
    compared.check((5, 9, 2, 77), 11, options=OPTIONS)


@pytest.fixture
def unpacked_at_load(tmp_path) -> PreTrainedModel:
    """The model that a folder stands for whose parts are not all of modules: transformers unpacks it."""
    unpacked = folders.bitsandbytes_folder(tmp_path, "llama", "8 bit")
    file = tmp_path / "packed" / "model.safetensors"
    save_file({**load_file(file), "model.another.SCB": torch.ones(1)}, file, metadata={"format": "pt"})
    return unpacked


def test_a_checkpoint_with_parts_of_no_module_is_unpacked_at_load(unpacked_at_load, tmp_path) -> None:
    """By bitsandbytes, whose models are not spread."""
    engine = load_engine(LoadSettings(str(tmp_path / "packed")))
    assert unpacked_bytes(engine._view.model, engine._view.device) == 0
    assert_same_answers(engine, engine_from(unpacked_at_load, byte_level_tokenizer()))
    with pytest.raises(FailedPreconditionError, match="quantized like this one cannot be spread over devices"):
        load_engine(LoadSettings(str(tmp_path / "packed"), device_map="auto"))


@pytest.mark.usefixtures("unpacked_at_load")
def test_weights_that_nobody_unpacks_are_refused(tmp_path, monkeypatch) -> None:
    """As those of BitNet, whose format transformers only runs."""

    def unpack(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("transformers.PreTrainedModel.dequantize", unpack)
    with pytest.raises(FailedPreconditionError, match="does not unpack weights of this format; serve the checkpoint"):
        load_engine(LoadSettings(str(tmp_path / "packed")))
