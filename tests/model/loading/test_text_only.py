"""Checkpoints of models that also see, served for text: as their language models alone, and no larger."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from neuron_attribution.requests import AttributeOptions, Direction
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, InterveneTask
from reference.compare_answers import assert_same
from reference.saved_models import save_tokenizer
from reference.tiny_families import TINY_FAMILIES, Facts
from reference.tiny_wrappers import WRAPPERS, with_eyes
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

PROMPT = (45, 73, 93, 18, 59, 56)
ALONE = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "llama4": "llama4_text",
    "mllama": "llama",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}
"""The family of the language model by itself: its own, or the one that it was made of."""
FOR_PICTURES = ("rope_parameters", "cross_attention_layers")


@pytest.mark.parametrize("kind", WRAPPERS)
def test_answers_are_those_of_the_language_model_alone(tmp_path: Path, kind: str) -> None:
    facts = TINY_FAMILIES[WRAPPERS[kind][0]][1] | {"pad_token_id": 0}
    whole = randomised(with_eyes(kind, facts))
    whole.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    alone = language_model(whole, kind, facts)
    engine, wanted = load_engine(LoadSettings(str(tmp_path), device="cpu")), engine_from(alone)
    options = AttributeOptions(direction=Direction.BOTH, query_sources=8)
    tasks = [
        AttributeTask(token_ids=PROMPT, explained=(ExplainedToken(len(PROMPT) - 1, 5),), options=options),
        InterveneTask(token_ids=PROMPT, sets=((),), generate=5),
    ]
    got, expected = engine.run(tasks), wanted.run(tasks)
    assert_same(got[0].explanations[0], expected[0].explanations[0])
    texts = [[token.id for token in outcome.before.continuation] for outcome in (got[1], expected[1])]
    assert texts[0] == texts[1]
    unread = 8 * facts["hidden_size"] if kind == "mllama" else 0  # tokens that stand for pictures
    assert weights(engine._view.model) == weights(alone) + unread < weights(whole)


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.3 * noise if parameter.dim() == 1 else 0.2 * noise)
    return model


def language_model(whole: PreTrainedModel, kind: str, facts: Facts) -> PreTrainedModel:
    """A model of the language model's family with its weights."""
    head = getattr(whole, "language_model", whole)  # Llama 4's has its unembedding inside
    body = getattr(head.model, "language_model", head.model)
    layers = [layer for layer in body.layers if not hasattr(layer, "cross_attn")]
    text = whole.config.get_text_config()
    own = {name: fact for name, fact in facts.items() if name not in FOR_PICTURES}
    own |= {"num_hidden_layers": len(layers), "rms_norm_eps": text.rms_norm_eps}
    if "rope_theta" in text.rope_parameters:
        own["rope_parameters"] = {name: text.rope_parameters[name] for name in ("rope_type", "rope_theta")}
    own |= {"norm_topk_prob": True} if kind == "qwen3_vl_moe" else {}
    config = AutoConfig.for_model(ALONE[kind], **own)
    alone = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            path = name.removeprefix("model.").split(".")
            source = head if path[0] == "lm_head" else body
            if path[0] == "layers":
                source, path = layers[int(path[1])], path[2:]
            parameter.copy_(source.get_parameter(".".join(path))[: len(parameter)])
    return alone


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
