"""`neuron-attribution model --check`, and what is refused before anything is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from neuron_attribution.cli.main import main
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.architectures.refusals import REFUSED
from neuron_attribution_server.model.loading.invariants import INVARIANTS
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from reference.saved_models import saved
from reference.tiny_families import tiny_family
from transformers import AutoConfig

pytestmark = pytest.mark.process

COMMAND = (sys.executable, "-m", "neuron_attribution.cli.main")


def only_a_configuration(folder: Path, family: str) -> Path:
    """A model of which there are no weights: whoever reads them fails with another error."""
    AutoConfig.for_model(family).save_pretrained(folder)
    return folder


def test_the_table_of_invariants(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["model", "--check", str(saved(tmp_path / "mixtral", "mixtral"))]) == 0
    printed = capsys.readouterr().out
    for name in INVARIANTS:
        assert name in printed
    for fact in ("mixtral", "experts", "expert width", "exact: every ranking"):
        assert fact in printed


def test_as_json_it_is_what_get_model_answers(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NEURON_ATTRIBUTION_DTYPE", "bfloat16")
    assert main(["model", "--json", "--check", str(saved(tmp_path / "gemma", "gemma3_text"))]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["family"] == "gemma3_text"
    assert answer["model"]["dtype"] == "bfloat16"
    assert {item["name"] for item in answer["invariants"]} == set(INVARIANTS)
    assert all(item["error"] < item["tolerance"] for item in answer["invariants"])


@pytest.mark.parametrize("words", [("model", "--check"), ("serve", "--listen", "localhost:0", "--model")])
def test_a_model_with_several_residual_streams_is_refused_before_serving(tmp_path, words) -> None:
    """By a process of its own: exit status 1 and the reason in one line."""
    folder = only_a_configuration(tmp_path, "gemma3n_text")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*COMMAND, *words, str(folder)], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "the gemma3n_text architecture is not supported: it mixes several residual streams (AltUp)" in done.stderr
    assert "SERVING" not in done.stdout


@pytest.mark.parametrize("family", ["deepseek_v4", "mamba", "openai-gpt", "diffllama", "xlm", "musicgen"])
def test_refused_by_the_configuration_alone(tmp_path, family) -> None:
    reason = REFUSED.get(family, "nobody has described its modules yet")
    with pytest.raises(FailedPreconditionError) as refused:
        load_engine(LoadSettings(str(only_a_configuration(tmp_path, family))))
    assert f"the {family} architecture is not supported: {reason}" in str(refused.value)


def test_a_model_that_is_not_there_is_refused_by_check(capsys) -> None:
    assert main(["model", "--check", "/nowhere"]) == 1
    assert "/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_moe", "gpt_neox"])
def test_types_of_weights(tmp_path, monkeypatch, family, dtype) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = load_engine(LoadSettings(str(saved(tmp_path / "model", family)), dtype=dtype))
    assert engine.facts.identity.dtype == dtype
    assert engine._view.layers[0].attention_output.weight.dtype == getattr(torch, dtype)


def test_pickled_weights_are_read_only_where_allowed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = saved(tmp_path / "model")
    state = tiny_family("llama").state_dict()
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 97}))
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(FailedPreconditionError, match="safetensors"):
        load_engine(LoadSettings(str(folder)))
    settings = LoadSettings(str(folder), pickled_weights=True)
    before = load_engine(settings).facts
    assert before.sizes.vocabulary == 97
    torch.save({name: 2 * tensor for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert load_engine(settings).facts.identity.revision != before.identity.revision


def test_code_of_a_model_is_run_only_where_allowed(tmp_path, monkeypatch) -> None:
    """The code says that it ran by failing in its own words."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text('raise RuntimeError("the code of the model ran")\n')
    with pytest.raises(FailedPreconditionError, match="trust_remote_code"):
        load_engine(LoadSettings(str(tmp_path)))
    with pytest.raises(FailedPreconditionError, match="the code of the model ran"):
        load_engine(LoadSettings(str(tmp_path), trust_remote_code=True))
