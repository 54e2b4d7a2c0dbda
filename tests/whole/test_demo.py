"""The converted demo model is the model in the GGUF file: same logits, same tokens, same answers."""

import pytest
import torch
from neuron_attribution_server.model.loading.sources.demo import DemoUnavailableError, demo_folder, fetch_gguf
from reference.gguf_reading import reading_once
from transformers import AutoModelForCausalLM, AutoTokenizer

# transformers' own GGUF reader and saver speak of settings that have nothing to do with the numbers.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ANSWERS = {
    "The capital of France is": (" Paris", 0.77),
    "The Eiffel Tower is located in the city of": (" Paris", 0.70),
    "Nishi-Matsuura District is located in the country of": (" Japan", 0.97),
    "Toulouse belongs to the continent of": (" Europe", 0.89),
    "People in Mexico speak": (" Spanish", 0.63),
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    try:
        return fetch_gguf(tmp_path_factory.mktemp("gguf"))
    except DemoUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder():
    try:
        return demo_folder()
    except DemoUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def test_logits_and_greedy_continuation_equal_the_gguf_model(gguf, model, tokenizer):
    with reading_once():
        original = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    for prompt in ANSWERS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-4, rtol=0)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), original.generate(ids, **options))


@torch.inference_mode()
@pytest.mark.parametrize("prompt", ANSWERS)
def test_it_knows_the_answers(model, tokenizer, prompt):
    answer, probability = ANSWERS[prompt]
    probabilities = model(tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1].softmax(-1)
    assert tokenizer.decode([int(probabilities.argmax())]) == answer
    assert float(probabilities.max()) == pytest.approx(probability, abs=0.01)


def test_the_tokenizer_adds_nothing_and_sets_digits_apart(tokenizer):
    assert tokenizer("").input_ids == []
    assert tokenizer.tokenize("is Paris") == ["is", "ĠParis"]
    assert tokenizer.tokenize("in  1984") == ["in", "ĠĠ", "1", "9", "8", "4"]
