"""A model's folder is data: no code in it is run, and no pickle of it is read."""

import json
import pickle

import pytest
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from reference.tiny_models import tiny_llama
from service.fakes import byte_level_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def folder(tmp_path):
    """A model that can be served, and code that leaves a trace."""
    tokenizer = Tokenizer.from_str(byte_level_tokenizer())
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    tiny_llama().save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Own: pass\n")
    return tmp_path


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(folder):
    """Why the folder is not served, having left no trace."""
    with pytest.raises(FailedPreconditionError) as error:
        load_engine(LoadSettings(str(folder)))
    assert not (folder / "trace").exists()
    return str(error.value)


def test_code_of_a_model_is_not_run(folder):
    own = {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}
    change(folder / "config.json", model_type="own", auto_map=own)
    assert "custom code" in refused(folder)


def test_code_beside_a_known_model_is_not_run(folder):
    change(folder / "config.json", auto_map={"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]})
    load_engine(LoadSettings(str(folder)))
    assert not (folder / "trace").exists()


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "trace")))
    why = refused(folder)
    assert "model.safetensors" in why
    assert "--pickled-weights true reads them all the same" in why
