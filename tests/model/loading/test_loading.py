"""Models are proven at load: right ones are served with their measured errors, wrong ones are refused by name."""

import dataclasses

import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.layers.layer_modules import attends
from neuron_attribution_server.model.architectures.spec import Layout, Rows
from neuron_attribution_server.model.capture.capture import ATTENTION_KEY
from neuron_attribution_server.model.loading.invariants import INVARIANTS
from neuron_attribution_server.model.loading.models import _spec, engine_from, load_engine
from neuron_attribution_server.settings.config import LoadSettings
from reference.tiny_families import TINY_FAMILIES, tiny_family
from reference.tiny_models import tiny_gpt2, tiny_llama
from reference.wrong_specs import WRONG_SPECS, wrong_spec
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, MambaForCausalLM
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.mark.parametrize("name", MODELS)
def test_every_invariant_is_measured_and_holds(name):
    invariants = engine_from(MODELS[name]()).facts.invariants
    assert len(invariants) == 7
    for invariant in invariants:
        assert 0 <= invariant.error < invariant.tolerance / 10
        assert invariant.description.endswith(".")


@pytest.mark.parametrize("case", WRONG_SPECS)
def test_a_wrong_spec_is_refused_naming_the_invariant(monkeypatch, case):
    name = WRONG_SPECS[case][0]
    monkeypatch.setitem(FAMILIES, TINY_FAMILIES[name][0], wrong_spec(case))
    with pytest.raises(FailedPreconditionError, match=f"{case.split()[0]} is off by") as refused:
        engine_from(tiny_family(name))
    assert refused.value.reason == "INVARIANT_FAILED"


@pytest.mark.parametrize(
    ("name", "failed"), [("jamba", "residual_additivity"), ("kimi_linear, attending twice", "attention_identity")]
)
def test_attention_that_is_taken_for_none_is_refused(monkeypatch, name, failed):
    """In one of two layers: for nothing at all, or for a recurrent mixer, which goes out by the same projection."""
    model = tiny_family(name)
    last = model.model.layers[-1]
    for module in ("layer_view", "layers.layer_modules"):
        monkeypatch.setattr(
            f"neuron_attribution_server.model.architectures.{module}.attends",
            lambda layer, spec: layer is not last and attends(layer, spec),
        )
    with pytest.raises(FailedPreconditionError, match=f"{failed} is off by"):
        engine_from(model)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_heads_that_are_not_as_many_as_the_configuration_says_are_refused(heads):
    model = tiny_llama()
    model.config.num_attention_heads = heads
    with pytest.raises(FailedPreconditionError, match=r"value_keys is off by inf|not values of heads of 32"):
        engine_from(model)


def test_a_projection_that_is_not_laid_out_so_is_refused(monkeypatch):
    wrong = dataclasses.replace(FAMILIES["llama"], value=Rows("self_attn.v_proj", Layout.QUERY_KEY_VALUE))
    monkeypatch.setitem(FAMILIES, "llama", wrong)
    with pytest.raises(FailedPreconditionError, match=r"the 16 rows of self_attn.v_proj are not values of heads of 8"):
        engine_from(tiny_llama())


def test_a_model_without_attention_is_refused():
    family, facts = TINY_FAMILIES["lfm2"]
    config = AutoConfig.for_model(family, **facts | {"layer_types": ["conv"] * 3})
    with pytest.raises(FailedPreconditionError, match="none of its layers has attention"):
        engine_from(AutoModelForCausalLM.from_config(config))


def test_every_invariant_refuses_a_wrong_spec():
    assert {case.split()[0] for case in WRONG_SPECS} == set(INVARIANTS)


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa", "minimax_m3_vl_text"])
def test_a_lost_choice_of_positions_is_refused(monkeypatch, family):
    """Indexers give attention the positions that it may look at beside the mask."""
    monkeypatch.setattr(
        "neuron_attribution_server.model.capture.capture.sparse_mask", lambda _module, _query, _key, mask, **_: mask
    )
    with pytest.raises(FailedPreconditionError, match="forward_parity"):
        engine_from(tiny_family(family))


def test_layers_with_different_numbers_of_heads_are_refused():
    family, facts = TINY_FAMILIES["laguna"]
    config = AutoConfig.for_model(family, **facts | {"num_attention_heads_per_layer": [4, 2]})
    with pytest.raises(FailedPreconditionError, match="different numbers of heads") as refused:
        engine_from(AutoModelForCausalLM.from_config(config))
    assert refused.value.reason == "UNSUPPORTED_ARCHITECTURE"


def test_what_holds_a_family_and_does_not_fit_is_refused():
    """A drafting model's own layers are a family's, but what they read is another model's."""
    config = AutoConfig.for_model("gemma4_unified_assistant")
    assert config.get_text_config().model_type in FAMILIES
    with pytest.raises(FailedPreconditionError, match="it drafts for another model"):
        _spec(config, guess=True)


def test_a_lost_mask_is_refused(monkeypatch):
    """Without a mask function of its own the recorded attention would see the future, and say nothing."""

    def sees_everything(*args, **kwargs):
        return torch.zeros_like(sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False})).logical_not()

    monkeypatch.setattr("neuron_attribution_server.model.capture.capture.sdpa_mask", sees_everything)
    with pytest.raises(FailedPreconditionError, match="forward_parity"):
        engine_from(tiny_llama())
    AttentionMaskInterface.register(ATTENTION_KEY, sdpa_mask)


def test_neurons_that_do_not_add_up_are_refused():
    """Something between the neurons and the write, such as a norm after the block, shows in both sums."""
    model = tiny_llama()
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda _module, _inputs, output: 1.1 * output)
        layer.self_attn.o_proj.register_forward_hook(lambda _module, _inputs, output: 1.1 * output)
    with pytest.raises(FailedPreconditionError, match=r"attention_neurons is off by.*ffn_neurons is off by"):
        engine_from(model)


def test_layers_that_do_more_than_add_are_refused():
    model = tiny_gpt2()
    for layer in model.transformer.h:
        layer.register_forward_hook(lambda _module, _inputs, output: 1.1 * output)
    with pytest.raises(FailedPreconditionError, match="residual_additivity is off by"):
        engine_from(model)


def test_a_model_without_its_norm_is_refused():
    model = tiny_gpt2()
    model.transformer.ln_f = torch.nn.Identity()
    with pytest.raises(FailedPreconditionError, match="has a norm where this model has Identity") as refused:
        engine_from(model)
    assert refused.value.reason == "UNSUPPORTED_ARCHITECTURE"


def test_an_unknown_architecture_is_refused_by_name():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(
        FailedPreconditionError,
        match=r"mamba architecture is not supported: .*state spaces.*; supported: afmoe.*xglm",
    ):
        engine_from(model)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="/nowhere: there is no such folder"):
        load_engine(LoadSettings("/nowhere"))


def test_float32_products_keep_every_bit(tmp_path):
    """Whatever was set before: TF32 would cost an exact score 13 bits."""
    tiny_llama().save_pretrained(tmp_path)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(Exception, match="okenizer"):  # the folder has none, which is found out later
            load_engine(LoadSettings(str(tmp_path)))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_unembedding_in_half_precision_is_the_models_own() -> None:
    """No copy of it in float32."""
    model = tiny_llama().to(torch.bfloat16)
    unembedding = engine_from(model)._unembedding.weight
    assert unembedding.dtype == torch.bfloat16
    assert unembedding.data_ptr() == model.get_output_embeddings().weight.data_ptr()
