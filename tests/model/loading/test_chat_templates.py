"""A checkpoint's chat templates are found wherever they lie: in the tokenizer's settings, or in files of their own."""

import json

import pytest
from neuron_attribution_server.model.loading.chat_templates import chat_templates
from service.talks import TEMPLATES, TOKENIZERS
from transformers import AutoTokenizer, PreTrainedTokenizerFast

NAMED = {"default": TEMPLATES["chatml"], "tool_use": TEMPLATES["qwen3"]}


@pytest.fixture
def folder(tmp_path):
    """A saved tokenizer without a template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["byte-level"], bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def found(folder):
    return chat_templates(AutoTokenizer.from_pretrained(folder))


def settings_have(folder, template):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def test_there_may_be_none(folder):
    assert found(folder).templates == {}
    assert found(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_in_the_settings(folder):
    settings_have(folder, TEMPLATES["gemma"])
    assert found(folder).templates == {"default": TEMPLATES["gemma"]}


def test_several_in_the_settings(folder):
    settings_have(folder, [{"name": name, "template": text} for name, text in NAMED.items()])
    assert found(folder).templates == NAMED


def test_in_a_file(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATES["gemma"])
    assert found(folder).templates == {"default": TEMPLATES["gemma"]}


def test_several_in_files(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = NAMED
    tokenizer.save_pretrained(folder)
    assert len(list(folder.rglob("*.jinja"))) == 2
    assert found(folder).templates == NAMED
