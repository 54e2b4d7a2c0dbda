"""LoRA adapters: merged they say what they said beside the base; one that does not fit is refused by name."""

from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from examples import few
from neuron_attribution import Client
from neuron_attribution.cli.main import main
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.requests import AttributeOptions
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.model.loading.adapters import merged
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.model.loading.sources import adapter_source as sources
from neuron_attribution_server.model.loading.sources.adapter_source import adapter_source
from neuron_attribution_server.model.loading.sources.model_source import model_source
from neuron_attribution_server.settings.config import ConfigurationError, LoadSettings, read_config
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoKrConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
)
from reference.compare_answers import assert_same
from reference.saved_adapters import WEIGHTS, added_by_hand, beside, change_tensors, plain_model, save_adapter
from reference.saved_models import save_tokenizer, saved
from safetensors.torch import load_file
from service.fakes import PROMPT
from service.servers import running_server
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
TOKENS = (5, 9, 2, 77)
PATTERNS = {"r": 4, "lora_alpha": 6, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 12}}
BOTH = {"target_modules": ["q_proj", "down_proj"]}
LORAS = {
    "patterns": ("llama", BOTH | PATTERNS),
    "rank-stabilised": ("llama", BOTH | PATTERNS | {"use_rslora": True}),
    "every linear layer": ("llama", {"target_modules": "all-linear"}),
    "DoRA": ("llama", BOTH | {"use_dora": True}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "DoRA of Conv1D": ("gpt2", {"target_modules": ["c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "biases": ("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True, "bias": "all", "lora_bias": True}),
    "tied embeddings": ("gpt2", {"target_modules": ["wte"]}),
    "a tied unembedding": ("gpt2", {"target_modules": ["lm_head"]}),
    "embeddings tied on purpose": ("gpt2", {"target_modules": ["wte"], "ensure_weight_tying": True}),
    "a module trained whole": ("llama", BOTH | {"modules_to_save": ["lm_head"]}),
    "tied embeddings trained whole": ("gpt2", {"target_modules": ["c_fc"], "modules_to_save": ["wte"]}),
    "trained tokens": ("llama", BOTH | {"trainable_token_indices": {"embed_tokens": [5, 77]}}),
    "tied trained tokens": ("gpt2", {"target_modules": ["c_fc"], "trainable_token_indices": {"wte": [5, 77]}}),
    "experts": (
        "mixtral",
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
}
OTHERS = {
    "PREFIX_TUNING": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
    "PROMPT_TUNING": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2),
    "IA3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LOKR": LoKrConfig(target_modules=["down_proj"]),
    "ADALORA": AdaLoraConfig(target_modules=["down_proj"], total_step=2),
}
UNMERGED = {
    "alora_invocation_tokens": [5],
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"tp": 1},
    "use_qalora": True,
    "kasa_config": {"beta": 1},
    "something_later": 3,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The folder of a family's model, made once."""
    folders = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = saved(tmp_path_factory.mktemp(family) / f"tiny-{family}", family)
        return folders[family]

    return folder


@pytest.fixture
def base(bases) -> Path:
    return bases("llama")


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return save_adapter(base, tmp_path / "tuned", LoraConfig(**BOTH, **PATTERNS))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "neuron-attribution"


def merge(base: Path, adapter: Path, dtype: torch.dtype = torch.float32):
    settings = LoadSettings(str(base), adapter=str(adapter))
    return merged(plain_model(base, dtype), model_source(settings), adapter_source(settings))


def change_config(folder: Path, **entries) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(base: Path, adapter: Path, **settings) -> str:
    """Why it is not served."""
    with pytest.raises(FailedPreconditionError) as error:
        load_engine(LoadSettings(str(base), adapter=str(adapter), **settings))
    return str(error.value)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.tensor([TOKENS])).logits


@pytest.mark.parametrize("name", few(LORAS, 3))
def test_merged_it_says_what_it_said_beside_the_base(bases, tmp_path, name) -> None:
    """By peft's own forward pass, in which nothing is merged."""
    family, settings = LORAS[name]
    base = bases(family)
    adapter = save_adapter(base, tmp_path / "tuned", LoraConfig(**settings))
    got, expected = logits(merge(base, adapter)), logits(beside(base, adapter))
    assert (expected - logits(plain_model(base))).abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("family", "settings", "scales"),
    [
        ("llama", BOTH | PATTERNS, {"q_proj": 12 / 4, "down_proj": 6 / 2}),
        ("llama", BOTH | PATTERNS | {"use_rslora": True}, {"q_proj": 12 / 4**0.5, "down_proj": 6 / 2**0.5}),
        ("gpt2", {"target_modules": ["c_proj"], "fan_in_fan_out": True, "r": 2, "lora_alpha": 3}, {"c_proj": 3 / 2}),
    ],
    ids=["patterns", "rank-stabilised", "Conv1D"],
)
def test_matrices_are_those_added_by_hand(bases, tmp_path, family, settings, scales, dtype) -> None:
    """In half precision, too, to the last bit: the sum is rounded once."""
    base = bases(family)
    adapter = save_adapter(base, tmp_path / "tuned", LoraConfig(**settings))
    got = dict(merge(base, adapter, dtype).named_parameters())
    before = plain_model(base, dtype)
    by_hand = added_by_hand(before, adapter, scales)
    assert len(by_hand) >= 4
    for name, parameter in got.items():
        assert parameter.dtype == dtype
        if name not in by_hand:
            assert torch.equal(parameter, before.get_parameter(name)), name
        elif dtype is torch.float32:
            torch.testing.assert_close(parameter.detach(), by_hand[name], rtol=1e-6, atol=1e-6)
        else:
            differing = parameter.detach().float() != by_hand[name].float()
            assert differing.float().mean() < 0.002, name  # where float32 sums of another order round otherwise


def test_embeddings_in_half_precision_are_rounded_once(bases, tmp_path) -> None:
    base = bases("gpt2")
    adapter = save_adapter(base, tmp_path / "tuned", LoraConfig(target_modules=["wte"]))
    exact = plain_model(base, torch.bfloat16).float()
    exact.save_pretrained(tmp_path / "exact")
    save_tokenizer(tmp_path / "exact")
    expected = merge(tmp_path / "exact", adapter).transformer.wte.weight.to(torch.bfloat16)
    got = merge(base, adapter, torch.bfloat16)
    assert torch.equal(got.transformer.wte.weight, expected)
    assert torch.equal(got.lm_head.weight, plain_model(base, torch.bfloat16).lm_head.weight)


def test_answers_are_those_of_the_model_merged_by_hand(base, adapter, tmp_path) -> None:
    model = plain_model(base)
    for name, weight in added_by_hand(model, adapter, {"q_proj": 12 / 4, "down_proj": 6 / 2}).items():
        model.get_parameter(name).data = weight
    model.save_pretrained(tmp_path / "merged")
    save_tokenizer(tmp_path / "merged")
    task = AttributeTask(
        token_ids=TOKENS, explained=(ExplainedToken(3, 11),), options=AttributeOptions(query_sources=8)
    )
    settings = [
        LoadSettings(str(base), adapter=str(adapter)),
        LoadSettings(str(tmp_path / "merged")),
        LoadSettings(str(base)),
    ]
    ((got,), (expected,), (before,)) = (load_engine(each).run([task]) for each in settings)
    assert_same(got.explanations[0], expected.explanations[0])
    with pytest.raises(AssertionError):
        assert_same(got.explanations[0], before.explanations[0])


def test_an_untied_embedding_is_explained(bases, tmp_path) -> None:
    """The invariants are measured of the merged model, whose unembedding is the base's."""
    base = bases("gpt2")
    adapter = save_adapter(base, tmp_path / "tuned", LoraConfig(target_modules=["wte"]))
    engine = load_engine(LoadSettings(str(base), adapter=str(adapter)))
    assert torch.equal(engine._unembedding.weight, plain_model(base).lm_head.weight)


def test_name_and_revision_tell_of_the_adapter(base, adapter, cache) -> None:
    """And so what is kept on disk is kept apart."""
    settings = LoadSettings(str(base), adapter=str(adapter))
    plain, tuned = (load_engine(each).facts.identity for each in (LoadSettings(str(base)), settings))
    assert tuned.name == "tiny-llama+tuned"
    assert tuned.revision.startswith(f"{plain.revision}+sha256:")
    assert load_engine(settings).facts.identity == tuned
    change_config(adapter, lora_alpha=7)
    other = load_engine(settings).facts.identity
    assert other.name == tuned.name
    change_tensors(adapter, fill=0.5)
    revisions = {plain.revision, tuned.revision, other.revision, load_engine(settings).facts.identity.revision}
    assert len(revisions) == 4


def test_ranges_on_disk_are_not_the_bases(base, adapter, cache) -> None:
    engines = [load_engine(LoadSettings(str(base))), load_engine(LoadSettings(str(base), adapter=str(adapter)))]
    for engine in engines:
        while engine.preparation.advance():
            pass
    assert len([path for path in (cache / "ranges").iterdir() if any(path.iterdir())]) == 2


def test_two_servers_are_compared_neuron_by_neuron(base, tmp_path) -> None:
    """A tuned model's neurons are the base's: where what they write is tuned, each is as active as before."""
    adapter = save_adapter(base, tmp_path / "tuned", LoraConfig(target_modules=["layers.1.mlp.down_proj"]))
    with ExitStack() as stack:
        clients = []
        for each in (None, str(adapter)):
            worker = ThreadWorker(load_engine(LoadSettings(str(base), adapter=each)))
            server = stack.enter_context(running_server(worker))
            assert server.loaded.wait(30)
            clients.append(stack.enter_context(Client(server.address)))
        comparison = clients[0].compare(PROMPT, other=clients[1], target=" Rome", top_k=4)
    assert comparison.second.model.name == "tiny-llama+tuned"
    assert comparison.first.model.name == "tiny-llama"
    for ranking in (comparison.ffn_neurons.fell, comparison.ffn_neurons.rose):
        assert ranking.exact
        assert abs(ranking.neurons[0].difference) > 0.01
        for item in ranking.neurons:
            assert item.first.coefficient == pytest.approx(item.second.coefficient, abs=1e-5)


def test_the_check_names_it(base, adapter, capsys) -> None:
    assert main(["model", "--check", str(base), "--adapter", str(adapter)]) == 0
    assert "tiny-llama+tuned" in capsys.readouterr().out


def test_a_quantised_base_is_merged_as_the_numbers_it_stands_for(tmp_path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, vocab_size=512, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config)
    packed.save_pretrained(tmp_path / "packed")
    save_tokenizer(tmp_path / "packed")
    adapter = save_adapter(tmp_path / "base", tmp_path / "tuned", LoraConfig(**BOTH))
    tuned = load_engine(LoadSettings(str(tmp_path / "packed"), adapter=str(adapter)))._view.model
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32).dequantize().float()
    for name, weight in added_by_hand(plain, adapter, {"": 1.0}).items():
        torch.testing.assert_close(tuned.get_parameter(name).detach(), weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused_by_name(base, tmp_path, kind) -> None:
    why = refused(base, save_adapter(base, tmp_path / "other", OTHERS[kind]))
    assert f"adapter_config.json has the type {kind}; only LORA adapters are merged" in why
    assert "save the merged model and serve that folder" in why


@pytest.mark.parametrize("name", UNMERGED)
def test_what_is_no_change_of_matrices_is_refused_by_name(base, adapter, name) -> None:
    change_config(adapter, **{name: UNMERGED[name]})
    assert f"adapter_config.json sets {name}; such a LoRA is not merged" in refused(base, adapter)


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "mica", "lora_ga"])
def test_another_base_to_begin_with_is_refused(base, adapter, begun) -> None:
    change_config(adapter, init_lora_weights=begun)
    why = refused(base, adapter)
    assert f"init_lora_weights {begun}, which changes the base's own weights" in why
    assert "path_initial_model_for_weight_conversion" in why


@pytest.mark.parametrize("begun", ["gaussian", "eva", "orthogonal", False])
def test_a_beginning_that_leaves_the_base_alone_is_merged(base, adapter, begun) -> None:
    expected = logits(merge(base, adapter))
    change_config(adapter, init_lora_weights=begun)
    assert torch.equal(logits(merge(base, adapter)), expected)


def test_an_adapter_of_another_base_is_refused(bases, adapter, tmp_path) -> None:
    assert "cannot be merged into tiny-gpt2: Target modules" in refused(bases("gpt2"), adapter)
    wider = plain_model(bases("llama")).config
    wider.intermediate_size = 48
    AutoModelForCausalLM.from_config(wider).save_pretrained(tmp_path / "wider")
    why = refused(tmp_path / "wider", adapter)
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    assert f"{adapter / WEIGHTS} cannot be merged into wider: {name} is 2x40, and this base asks for 2x48" in why
    deeper = plain_model(bases("llama")).config
    deeper.num_hidden_layers = 1
    AutoModelForCausalLM.from_config(deeper).save_pretrained(tmp_path / "shallow")
    why = refused(tmp_path / "shallow", adapter)
    assert f"{adapter / WEIGHTS} has 4 tensors, such as base_model.model.model.layers.1." in why
    assert "made for another base than shallow" in why


def test_missing_tensors_are_refused(base, adapter, tmp_path) -> None:
    change_tensors(adapter, drop="layers.1.mlp.down_proj.lora_B")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    assert f"{adapter / WEIGHTS} lacks 1 tensor, such as {name}, that" in refused(base, adapter)
    whole = save_adapter(base, tmp_path / "whole", LoraConfig(**BOTH, modules_to_save=["lm_head"]))
    change_tensors(whole, drop="lm_head")
    assert f"{whole / WEIGHTS} lacks the tensor base_model.model.lm_head.weight" in refused(base, whole)


def test_tensors_without_a_place_are_refused(base, adapter) -> None:
    change_tensors(adapter, extra={"base_model.model.score.weight": torch.ones(2, 32)})
    assert "has 1 tensor, such as base_model.model.score.weight, that" in refused(base, adapter)


def test_numbers_that_are_not_finite_are_refused(base, adapter) -> None:
    change_tensors(adapter, fill=float("nan"))
    assert f"{adapter / WEIGHTS} has numbers that are not finite in base_model.model" in refused(base, adapter)


def test_files_that_are_not_there_or_damaged_are_named(base, adapter, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="--adapter /nowhere: there is no such folder"):
        load_engine(LoadSettings(str(base), adapter="/nowhere"))
    (tmp_path / "empty").mkdir()
    assert f"there is no file {tmp_path}/empty/adapter_config.json" in refused(base, tmp_path / "empty")
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[:-100])
    assert f"{adapter / WEIGHTS} cannot be merged into tiny-llama: SafetensorError" in refused(base, adapter)
    (adapter / WEIGHTS).unlink()
    assert f"there is no file {adapter / WEIGHTS}" in refused(base, adapter)
    os.mkfifo(adapter / WEIGHTS)
    assert "regular files only" in refused(base, adapter)
    (adapter / WEIGHTS).unlink()
    (adapter / WEIGHTS).write_bytes(whole)
    (adapter / "adapter_config.json").write_text("{")
    assert "adapter_config.json is not valid JSON" in refused(base, adapter)
    (adapter / "adapter_config.json").write_text("[]")
    assert "adapter_config.json does not hold a JSON object" in refused(base, adapter)


def test_pickled_tensors_are_read_only_where_allowed(base, adapter) -> None:
    expected = logits(merge(base, adapter))
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    why = refused(base, adapter)
    assert "adapter_model.bin is a pickle, which can run code" in why
    assert "--pickled-weights true" in why
    engine = load_engine(LoadSettings(str(base), adapter=str(adapter), pickled_weights=True))
    torch.testing.assert_close(logits(engine._view.model), expected, rtol=1e-5, atol=1e-5)


def test_the_base_that_it_names_is_told_and_not_loaded(base, adapter, caplog) -> None:
    with caplog.at_level(logging.INFO):
        merge(base, adapter)
        assert caplog.records == []
        change_config(adapter, base_model_name_or_path="somebody/another-model")
        merge(base, adapter)
    (record,) = caplog.records
    assert "says that it was made for somebody/another-model; it is merged into tiny-llama" in record.getMessage()


def test_without_peft_the_extra_is_named(base, adapter, monkeypatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name == "peft" else object())
    assert "pip install 'neuron-attribution[adapters]'" in refused(base, adapter)


def test_a_model_with_an_adapter_in_it_is_refused(base, adapter, tmp_path) -> None:
    """transformers would fetch what it names from the Hub, or hang it into the layers."""
    for path in base.iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FailedPreconditionError, match=r"holds an adapter \(adapter_config.json\): name its base model"):
        load_engine(LoadSettings(str(adapter)))


def test_it_is_not_merged_into_a_model_that_is_spread() -> None:
    with pytest.raises(ConfigurationError, match="adapter and device_map"):
        read_config({"model": "demo", "adapter": "tuned", "device_map": "auto"}, {})
