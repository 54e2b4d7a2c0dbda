"""Packed checkpoints that are damaged, of which a library is missing, or that are unpacked for a reason: told."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.packed.modules import tensor_bytes, unpacked_bytes
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from peft import LoraConfig
from reference import packed_folders as folders
from reference.compare_answers import assert_same
from reference.saved_adapters import added_by_hand, save_adapter
from safetensors.torch import load_file, save_file
from service.fakes import byte_level_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
TASK = AttributeTask(token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11),))
SAME = 1e-5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_memory_is_told(tmp_path, caplog) -> None:
    folders.gptq_folder(tmp_path, "llama", 4, unembedding=True)
    with caplog.at_level(logging.INFO):
        model = load_engine(packed(tmp_path))._view.model
    (fields,) = [record.fields for record in caplog.records if record.message == "weights stay packed"]
    unembedding = 4 * model.config.vocab_size * model.config.hidden_size
    assert fields == {
        "packing": "GPTQ",
        "weights_bytes": tensor_bytes(model) + unembedding,
        "unpacked_bytes": unpacked_bytes(model, torch.device("cpu")),
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_merged_into_unpacked_matrices(tmp_path, caplog, family) -> None:
    """By no other library than peft."""
    layers = {"target_modules": ["q_proj", "down_proj"]}
    if family == "gpt2":
        layers = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
        unpacked = folders.bitsandbytes_folder(tmp_path, family, "8 bit")
    else:
        unpacked = folders.gptq_folder(tmp_path, family, 4)
    folders.plain(family).save_pretrained(tmp_path / "plain")
    adapter = save_adapter(tmp_path / "plain", tmp_path / "tuned", LoraConfig(**layers))
    with caplog.at_level(logging.INFO):
        engine = load_engine(replace(packed(tmp_path), adapter=str(adapter)))
    assert unpacked_why(caplog) == "an adapter is merged into them"
    for name, weight in added_by_hand(unpacked, adapter, {"": 1.0}).items():
        unpacked.get_parameter(name).data = weight
    assert_same_answer(engine, engine_from(unpacked, byte_level_tokenizer()))


def test_experts_are_unpacked_for_a_guess(tmp_path, monkeypatch, caplog) -> None:
    unpacked = folders.fp8_experts_folder(tmp_path)
    plain = engine_from(unpacked, byte_level_tokenizer())
    monkeypatch.delitem(FAMILIES, "qwen3_moe")
    settings = replace(packed(tmp_path), guess_architecture=True)
    with caplog.at_level(logging.INFO):
        engine = load_engine(settings)
    assert engine.facts.family == "guessed:qwen3_moe"
    assert unpacked_why(caplog) == "a guess is proven on them"
    assert_same_answer(engine, plain)
    with pytest.raises(FailedPreconditionError, match="quantized like this one cannot be spread over devices"):
        load_engine(replace(settings, device_map="auto"))


def test_what_is_described_stays_packed_where_others_are_guessed(tmp_path) -> None:
    folders.gptq_folder(tmp_path, "llama", 4)
    engine = load_engine(replace(packed(tmp_path), guess_architecture=True))
    assert unpacked_bytes(engine._view.model, engine._view.device) > 0


def test_a_damaged_file_is_named(tmp_path) -> None:
    folders.gptq_folder(tmp_path, "llama", 4)
    file = tmp_path / "packed" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FailedPreconditionError, match=rf"{file} is cut short or damaged"):
        load_engine(packed(tmp_path))


@pytest.mark.parametrize(
    ("checkpoint", "part"),
    [
        (lambda folder: folders.bitsandbytes_folder(folder, "llama", "8 bit"), "layers.1.mlp.down_proj.SCB"),
        (lambda folder: folders.fp8_folder(folder, "llama"), "layers.1.mlp.down_proj.weight_scale_inv"),
        (folders.fp8_experts_folder, "layers.1.mlp.experts.2.down_proj.weight_scale_inv"),
    ],
    ids=["bitsandbytes", "FP8", "FP8 experts"],
)
def test_numbers_without_scales_are_not_taken_for_weights(tmp_path, checkpoint, part) -> None:
    checkpoint(tmp_path)
    file = change_tensors(tmp_path, lambda tensors: tensors.pop(f"model.{part}"))
    with pytest.raises(FailedPreconditionError, match=rf"{file} has the packed numbers model\..* and no model.{part}"):
        load_engine(packed(tmp_path))


@pytest.mark.parametrize(
    ("checkpoint", "part"),
    [
        (lambda folder: folders.gptq_folder(folder, "llama", 4), "model.layers.0.mlp.up_proj.scales"),
        (lambda folder: folders.awq_folder(folder, "llama"), "model.layers.0.mlp.up_proj.qweight"),
        (folders.mxfp4_folder, "model.layers.0.mlp.experts.down_proj_scales"),
    ],
    ids=["GPTQ", "AWQ", "MXFP4"],
)
@pytest.mark.parametrize("change", ["missing", "shorter"])
def test_parts_that_are_missing_or_do_not_fit_are_refused(tmp_path, checkpoint, part, change) -> None:
    """No answer is given: either the file is named, or the package that may know better."""

    def changed(tensors) -> None:
        tensor = tensors.pop(part)
        if change == "shorter":
            tensors[part] = tensor[: len(tensor) // 2].clone()

    checkpoint(tmp_path)
    change_tensors(tmp_path, changed)
    with pytest.raises((FailedPreconditionError, ImportError), match=r"model refused: .*packed|optimum|gptqmodel"):
        load_engine(packed(tmp_path))


def test_what_cannot_stay_packed_needs_its_library(tmp_path) -> None:
    """Which is named."""
    folders.gptq_folder(tmp_path, "llama", 4)
    file = tmp_path / "packed" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["bits"] = 3
    file.write_text(json.dumps(config))
    with pytest.raises(ImportError, match="optimum"):
        load_engine(packed(tmp_path))


def test_a_packed_unembedding_that_is_tied_is_not_mixed_up(tmp_path, caplog) -> None:
    """With the embedding, which is plain."""
    folders.gptq_folder(tmp_path, "tied", 4, unembedding=True)
    with caplog.at_level(logging.INFO), pytest.raises((FailedPreconditionError, ImportError)):
        load_engine(packed(tmp_path))
    assert "lm_head is packed, and the embedding it shares its matrix with is not" in unpacked_why(caplog)


def packed(folder: Path) -> LoadSettings:
    return LoadSettings(str(folder / "packed"))


def change_tensors(folder: Path, change) -> Path:
    file = folder / "packed" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def unpacked_why(caplog) -> str:
    (fields,) = [record.fields for record in caplog.records if record.message == "weights are unpacked at load"]
    return fields["reason"]


def assert_same_answer(engine, expected) -> None:
    mine, theirs = (each.run([TASK])[0].explanations[0] for each in (engine, expected))
    assert_same(mine, theirs, SAME)
