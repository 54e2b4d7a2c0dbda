"""Quantised checkpoints: served as the numbers their packed weights stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import AttributeOptions, Direction
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.compared import compare_dissected
from reference.saved_models import save_tokenizer
from service.fakes import SIZES
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": SIZES.vocabulary,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE)),
}
SCHEMES = {
    "8 bit": (BitsAndBytesConfig(load_in_8bit=True), 0.02),
    "4 bit": (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32), 0.3),
}


@pytest.fixture(params=[(family, scheme) for family in MODELS for scheme in SCHEMES], ids="-".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> tuple[Path, torch.Tensor, float]:
    """A folder with packed weights, one matrix as it was before, and how far packing moves it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    family, scheme = request.param
    config, error = SCHEMES[scheme]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[family]()
    model.save_pretrained(tmp_path / "plain")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    packed.save_pretrained(tmp_path / "packed")
    save_tokenizer(tmp_path / "packed")
    return tmp_path / "packed", model.model.layers[1].mlp.down_proj.weight.detach(), error


def test_packed_weights_are_served_as_what_they_stand_for(checkpoint) -> None:
    folder, original, error = checkpoint
    engine = load_engine(LoadSettings(str(folder)))
    weight = engine._view.model.model.layers[1].mlp.down_proj.weight
    assert weight.shape == original.shape
    assert weight.dtype == torch.float32
    distance = (weight - original).abs().max() / original.abs().max()
    assert 0 < distance < error
    compared = compare_dissected(engine._view.model, "quantised")
    compared.check((5, 9, 2, 77), 11, options=AttributeOptions(direction=Direction.BOTH, query_sources=8))
    task = AttributeTask(token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11),))
    (outcome,) = engine.run([task])
    assert outcome.explanations[0].ffn_value_neurons.coverage.exact


def test_packed_weights_are_not_spread(checkpoint) -> None:
    folder, _, _ = checkpoint
    with pytest.raises(FailedPreconditionError, match="a quantized checkpoint cannot be spread over devices"):
        load_engine(LoadSettings(str(folder), device_map="auto"))


def test_weights_that_nobody_unpacks_are_refused(checkpoint, monkeypatch) -> None:
    """As those of BitNet, whose format transformers only runs."""

    def unpack(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("transformers.PreTrainedModel.dequantize", unpack)
    with pytest.raises(FailedPreconditionError, match="does not unpack weights of this format; serve the checkpoint"):
        load_engine(LoadSettings(str(checkpoint[0])))
