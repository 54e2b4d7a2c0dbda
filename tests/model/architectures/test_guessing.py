"""Architectures guessed: families whose description is taken away are served as if it were there, or refused.

A guess that is proven and answers otherwise is what must not be. So wrong descriptions are given as guesses too: those
that the invariants refuse, and those that only a guess's own checks can see.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from examples import few
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron
from neuron_attribution.requests import AttributeOptions, Direction, Side, Subkey
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.guessing import guess
from neuron_attribution_server.model.architectures.guessing.trace import NoGuessError
from neuron_attribution_server.model.architectures.spec import ArchitectureSpec, Layout, NormKind, Rows
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.guessed import guesses
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.settings.config import ConfigurationError, LoadSettings, read_config
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken, ProjectTask
from reference.compare_answers import assert_same
from reference.compared import Compared
from reference.dissection import Dissection
from reference.saved_models import saved
from reference.tiny_families import TINY_FAMILIES, tiny_family
from reference.wrong_specs import WRONG_SPECS, wrong_spec
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

PROMPT = (45, 73, 93, 18, 59, 56)
OPTIONS = AttributeOptions(direction=Direction.BOTH, query_sources=8, include_final_norm_bias=True)
NEURONS = AttentionNeuron(0, 0, 0), AttentionNeuron(1, 3, 7)
SAME = 1e-6

NO_ATTENTION = "layer 0 has no attention whose weights can be had"
NO_VALUES = "no projection of its layers gives the values that attention mixes"
NO_OUTPUT = "no projection of its layers takes in what attention mixes"
NOT_GUESSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "lfm2",
            "lfm2_moe",
            "granitemoehybrid",
            "granitemoehybrid, biased",
            "bamba",
            "jamba",
            "nemotron_h",
            "olmo_hybrid",
            "kimi_linear",
            "kimi_linear, attending twice",
            "qwen3_next",
            "qwen3_5_text",
            "qwen3_5_moe_text",
            "recurrent_gemma",
        ),
        NO_ATTENTION,
    ),
    **dict.fromkeys(("gemma4_text", "gemma4_text, experts", "gemma4_unified_text", "mimo_v2_flash"), NO_VALUES),
    **dict.fromkeys(("afmoe", "laguna", "laguna, a gate for each dimension", "bitnet"), NO_OUTPUT),
    "falcon_h1": "something other than one norm is between the residual stream and the values",
    "minicpm3": "what is written is multiplied by 0.70711, which is no number of its configuration",
    "axk1": "ffn_neurons is off by",
    "minimax_m3_vl_text": "no network of its layers is an activation, or that times a projection, before a projection",
    "llama4_text": "what attention and the FFN write does not add up to what its layers change",
}
"""The tiny models that no guess describes, and what they are refused for."""


def engine_by_guess(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, *specs: ArchitectureSpec) -> Engine:
    """With its family described nowhere; where `specs` are given, these are the guesses."""
    family = model.config.get_text_config().model_type
    monkeypatch.delitem(FAMILIES, family, raising=False)
    if specs:
        monkeypatch.setattr(guesses, "candidates", lambda *_: list(specs))
    return engine_from(model, guess=True)


def assert_same_answers(got: Engine, want: Engine) -> None:
    """Every part of an attribution, and what is projected of neurons, by each way into them."""
    explained = (ExplainedToken(len(PROMPT) - 1, 5), ExplainedToken(2, 5))
    tasks = [AttributeTask(token_ids=PROMPT, explained=explained, contrast=60, options=OPTIONS)]
    for (mine,), (theirs,) in zip(*([each.run([task]) for task in tasks] for each in (got, want)), strict=True):
        for pair in zip(mine.explanations, theirs.explanations, strict=True):
            assert_same(*pair, tolerance=SAME)
    sizes = want.facts.sizes
    neurons = (*NEURONS, FfnNeuron(1, 3)) if not sizes.experts else (*NEURONS, FfnNeuron(1, 3, 2))
    for subkey in (Subkey.UP, Subkey.GATE, Subkey.SUBVALUE):
        task = ProjectTask(neurons=neurons, side=Side.SUBKEY, subkey=subkey)
        (mine,), (theirs,) = got.run([task]), want.run([task])
        if isinstance(theirs, Exception):
            assert type(mine) is type(theirs)
            continue
        for one, other in zip(mine.projections, theirs.projections, strict=True):
            assert [each.token.id for each in one.projection.top] == [each.token.id for each in other.projection.top]
    assert got.facts.sizes == sizes


@pytest.mark.parametrize("name", few(TINY_FAMILIES, 8))
def test_a_family_without_its_description_is_served_all_the_same(monkeypatch, name) -> None:
    """Or refused, if it is listed so: never served with other answers."""
    model = tiny_family(name)
    described = engine_from(model)
    if name in NOT_GUESSED:
        with pytest.raises(FailedPreconditionError, match=NOT_GUESSED[name]):
            engine_by_guess(monkeypatch, model)
        return
    guessed = engine_by_guess(monkeypatch, model)
    assert guessed.facts.family == f"guessed:{TINY_FAMILIES[name][0]}"
    assert_same_answers(guessed, described)


@pytest.mark.parametrize("name", few(("flint", "kolibri1", "hy_v3", "youtu", "glm4_moe_lite"), 2))
def test_a_guessed_family_answers_as_brute_force_does(monkeypatch, name) -> None:
    """The oracle takes the model apart by itself."""
    model = tiny_family(name)
    dissection = Dissection(model)
    engine = engine_by_guess(monkeypatch, model)
    Compared(name, model, dissection.weights, engine, dissection).check(PROMPT, 5, options=OPTIONS)


def test_most_families_are_guessed() -> None:
    guessed = {family for name, (family, _) in TINY_FAMILIES.items() if name not in NOT_GUESSED}
    assert len(guessed) >= 50
    assert len(NOT_GUESSED) <= len(TINY_FAMILIES) / 4
    assert set(NOT_GUESSED) <= set(TINY_FAMILIES)


@pytest.mark.parametrize("case", WRONG_SPECS)
def test_a_wrong_description_is_refused_as_a_guess(monkeypatch, case) -> None:
    name = WRONG_SPECS[case][0]
    family = TINY_FAMILIES[name][0]
    with pytest.raises(
        FailedPreconditionError, match=f"{family}.* guess fails: .*{case.split()[0]} is off by"
    ) as refused:
        engine_by_guess(monkeypatch, tiny_family(name), wrong_spec(case))
    assert refused.value.reason == "INVARIANT_FAILED"


@pytest.mark.parametrize("name", few(["gpt_bigcode", "gemma2", "hyperclovax", "qwen2_moe", "olmo", "deepseek_v3"], 1))
def test_whatever_else_is_proven_answers_the_same(monkeypatch, name) -> None:
    """Guesses that are wrong in one thing each are refused, but for those which say the same of this model."""
    model = tiny_family(name)
    described = engine_from(model)
    family = TINY_FAMILIES[name][0]
    (right, *_) = guess.candidates(model, family)
    refused = 0
    for wrong in mutants(right):
        try:
            guessed = engine_by_guess(monkeypatch, model, wrong)
        except FailedPreconditionError:
            refused += 1
        else:
            assert_same_answers(guessed, described)
    assert refused >= 8


def mutants(spec: ArchitectureSpec) -> Iterator[ArchitectureSpec]:
    """A description with one thing changed, each."""
    for name in ("ffn", "shared_ffn"):
        network = getattr(spec, name)
        if network is not None and network.gate is not None:
            yield replace(spec, **{name: replace(network, up=network.gate, gate=network.up)})
    yield replace(spec, norm_offset=1 - spec.norm_offset)
    yield replace(spec, norm=NormKind.LAYER if spec.norm is NormKind.RMS else NormKind.RMS)
    yield replace(spec, parallel=not spec.parallel)
    yield replace(spec, attention_norm=spec.ffn_norm)
    yield replace(spec, ffn_norm=spec.attention_norm)
    yield replace(spec, attention_norm=spec.ffn_norm, ffn_norm=spec.attention_norm)
    yield replace(spec, attention_write=spec.ffn_write)
    yield replace(spec, attention_write=spec.ffn_write, ffn_write=spec.attention_write)
    for field in ("residual_multiplier", "logit_multiplier", "value_clip", "value_latent", "shared_ffn", "ffn_write"):
        if getattr(spec, field) is not None:
            yield replace(spec, **{field: None})
    yield replace(spec, logit_divisor=spec.logit_multiplier, logit_multiplier=spec.logit_divisor)
    for layout in Layout:
        yield replace(spec, value=Rows(spec.value.module, layout))


def clamped_ffn(model: PreTrainedModel) -> None:
    """Coefficients have a bound that no short text reaches."""
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, args: (args[0].clamp(-200, 200),))


def clamped_logits(model: PreTrainedModel) -> None:
    model.lm_head.register_forward_hook(lambda _module, _args, output: output.clamp(-100, 100))


def clamped_values(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _args, output: output.clamp(-20, 20))


def later_tokens_seen(model: PreTrainedModel) -> None:
    model.model.embed_tokens.register_forward_hook(lambda _module, _args, output: output + output.mean(1, keepdim=True))


def small_third_write(model: PreTrainedModel) -> None:
    """Beside one token whose numbers are so large that the invariants look at nothing else."""
    model.model.embed_tokens.weight.data[:, 0] *= 1e5
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _args, output: output + 0.05)


def other_epsilon(model: PreTrainedModel) -> None:
    """The norms have another epsilon than they say."""
    for layer in model.model.layers:
        layer.input_layernorm = OtherEpsilon(layer.input_layernorm)


class OtherEpsilon(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        scale = (vectors.square().mean(-1, keepdim=True) + 1.5 * self.variance_epsilon).sqrt()
        return self.weight * vectors / scale


def gates_called_up(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        own = layer.mlp.experts._apply_gate

        def swapped(_experts: nn.Module, both: torch.Tensor, own=own) -> torch.Tensor:
            return own(both.unflatten(-1, (-1, 2)).flip(-1).flatten(-2))

        layer.mlp.experts._apply_gate = types.MethodType(swapped, layer.mlp.experts)


UNSEEN = {
    "ffn_keys is off by .* with enlarged weights": ("llama", clamped_ffn),
    "forward_parity is off by .* with enlarged weights": ("llama", clamped_logits),
    "value_keys is off by .* with enlarged weights": ("llama", clamped_values),
    "single_positions is off by": ("llama", later_tokens_seen),
    "layer_changes is off by": ("llama", small_third_write),
    "norm_formulas is off by": ("llama", other_epsilon),
    "expert_gates is off by": ("gpt_oss", gates_called_up),
}
"""What a guess is refused for that a description passes with, and a model that has it."""


@pytest.mark.parametrize("problem", UNSEEN)
def test_what_the_invariants_do_not_see_is_seen_in_a_guess(monkeypatch, problem) -> None:
    family, change = UNSEEN[problem]
    model = tiny_family(family)
    change(model)
    spec = FAMILIES[family]
    engine_from(model)
    with pytest.raises(FailedPreconditionError, match=f"guess fails: .*{problem}"):
        engine_by_guess(monkeypatch, model, spec)


class LooksBack(nn.Module):
    """An activation that also takes in the token before."""

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        activated = nn.functional.silu(numbers)
        return activated + 0.5 * nn.functional.pad(activated, (0, 0, 1, -1))


def test_neurons_that_look_at_other_tokens_are_refused() -> None:
    """What query neurons give is read at a few positions, without those between."""
    model = tiny_family("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = LooksBack()
    with pytest.raises(FailedPreconditionError, match="ffn_keys is off by"):
        engine_from(model)


def test_a_clip_of_values_that_nothing_reaches_is_seen(monkeypatch) -> None:
    model = tiny_family("olmo")
    for layer in model.model.layers:
        layer.self_attn.config.clip_qkv = 1000.0
    specs = guess.candidates(model, "olmo")
    assert {spec.value_clip for spec in specs} == {"clip_qkv", None}
    unclipped = next(spec for spec in specs if spec.value_clip is None)
    with pytest.raises(FailedPreconditionError, match=r"value_keys is off by .* with enlarged weights"):
        engine_by_guess(monkeypatch, model, unclipped)
    monkeypatch.undo()
    assert engine_by_guess(monkeypatch, model)._view.spec.value_clip == "clip_qkv"


def test_weights_come_back_as_they_were(monkeypatch) -> None:
    """In half precision, to which what is proven in float32 says more than its own rounding would."""
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny_family("gemma").to(dtype)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        described = engine_from(model)
        with monkeypatch.context() as patched:
            guessed = engine_by_guess(patched, model)
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert all(value.dtype == dtype for value in after.values())
        assert guessed.facts.identity.dtype == described.facts.identity.dtype == str(dtype).removeprefix("torch.")
        assert_same_answers(guessed, described)


def test_attention_that_writes_nothing_leaves_nothing_to_guess(monkeypatch) -> None:
    model = tiny_family("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    with pytest.raises(FailedPreconditionError, match="cannot be guessed: its attention writes nothing"):
        engine_by_guess(monkeypatch, model)


def test_layers_that_no_description_fits_are_refused_by_what_they_lack(monkeypatch) -> None:
    """Neurons behind the activation that something scales; norms of two kinds; a factor that is no number of config."""
    scaled, mixed, multiplied = (tiny_family("llama") for _ in range(3))
    for layer in scaled.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, args: (1.5 * args[0],))
    mixed.model.norm = nn.LayerNorm(32)
    multiplied.lm_head.register_forward_hook(lambda _module, _args, output: 1.7 * output)
    for model, problem in (
        (scaled, "no network of its layers is an activation"),
        (mixed, "its norms are of several kinds"),
        (multiplied, "the logits are multiplied by 1.7"),
    ):
        with pytest.raises(NoGuessError, match=problem):
            guess.candidates(model, "llama")


def test_a_model_that_fails_in_its_own_code_is_refused(monkeypatch) -> None:
    model = tiny_family("llama")
    model.model.layers[0].register_forward_hook(lambda *_: {}["lost"])
    with pytest.raises(FailedPreconditionError, match="cannot be guessed: KeyError: 'lost'"):
        engine_by_guess(monkeypatch, model)


def test_what_is_known_not_to_fit_is_not_guessed() -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba", vocab_size=64, hidden_size=16, num_hidden_layers=1)
    )
    with pytest.raises(FailedPreconditionError, match=r"mamba architecture is not supported: .*state spaces"):
        engine_from(model, guess=True)


def test_a_model_is_guessed_only_where_asked(tmp_path, monkeypatch, caplog) -> None:
    """And the log says what was guessed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = str(saved(tmp_path / "model"))
    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(FailedPreconditionError, match="--guess-architecture true tries to find them"):
        load_engine(LoadSettings(folder))
    with caplog.at_level(logging.WARNING):
        engine = load_engine(LoadSettings(folder, guess_architecture=True))
    assert engine.facts.family == "guessed:llama"
    assert "the llama architecture is described nowhere; guessed, and proven: " in caplog.text
    assert "attention_output='self_attn.o_proj'" in caplog.text


def test_the_language_model_of_one_that_sees_pictures(monkeypatch) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    tokens = {"image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94}
    text = TINY_FAMILIES["gemma3_text"][1]
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, **tokens)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.model.language_model.load_state_dict(tiny_family("gemma3_text").model.state_dict())
    described = engine_from(model)
    assert_same_answers(engine_by_guess(monkeypatch, model), described)


def test_a_guess_is_made_on_one_device() -> None:
    flags = {"model": "demo", "guess_architecture": "true", "device_map": "auto"}
    with pytest.raises(ConfigurationError, match="guess_architecture with device_map"):
        read_config(flags, {})
