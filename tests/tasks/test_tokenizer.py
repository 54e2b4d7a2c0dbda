"""Exact token texts, byte offsets and named tokens, for byte-level and for SentencePiece-like tokenizers."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.evaluation.first_tokens import FirstTokens
from neuron_attribution.results import ModelIdentity, TokenizeResult
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer
from service.fakes import TOKENIZER as BYTE_LEVEL
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors


def metaspace_tokenizer_json():
    """As Llama 2's: a space goes before every text, unknown characters become bytes, <s> comes first."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    pieces += [("▁", -3.0), ("▁Paris", -2.0), ("Paris", -2.0), ("▁a", -2.0), ("a", -3.0), ("A", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(4)  # a setting of training; texts must not be cut
    return tokenizer.to_str()


def prepending_tokenizer():
    """As Llama 1's: its normalizer puts a space before every text, even before one that starts with a space."""
    tokenizer = json.loads(METASPACE_JSON) | {"pre_tokenizer": None, "normalizer": None}
    prepending = Tokenizer.from_str(json.dumps(tokenizer))
    prepending.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return ExactTokenizer(prepending.to_str())


def trimming_tokenizer():
    """A byte-level tokenizer whose post-processor cuts spaces out of the offsets."""
    tokenizer = Tokenizer.from_str(spaced_tokenizer_json())
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True)])
    return ExactTokenizer(tokenizer.to_str())


def spaced_tokenizer_json():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate([*alphabet, "Ġa"])}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


METASPACE_JSON = metaspace_tokenizer_json()
METASPACE = ExactTokenizer(METASPACE_JSON)
PREPENDING = prepending_tokenizer()


def texts(tokenizer, ids):
    return [tokenizer.text(id) for id in ids]


@given(st.text(min_size=1))
def test_byte_offsets_cover_the_text(text):
    tokens = BYTE_LEVEL.encode(text, add_special_tokens=False)
    data = text.encode()
    assert tokens[0].start == 0
    assert tokens[-1].end == len(data)
    for token, following in pairwise(tokens):
        assert following.start == token.end or (following.start, following.end) == (token.start, token.end)
    for item in tokens:
        if "\ufffd" not in item.token.text and "\ufffd" not in text:
            assert data[item.start : item.end].decode() == item.token.text


def test_offsets_are_whole_even_where_the_tokenizer_trims_them():
    [first, second] = trimming_tokenizer().encode("a a")
    assert (first.start, first.end, second.start, second.end) == (0, 1, 1, 3)


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (BYTE_LEVEL, "The capital", ["<bos>", "The", " capital"]),
        (METASPACE, "Paris Paris", ["<s>", " Paris", " Paris"]),
        (METASPACE, "Paris", ["<s>", " Paris"]),
        (METASPACE, "ParisaA日", ["<s>", " Paris", "a", "A", "\ufffd", "\ufffd", "\ufffd"]),
    ],
)
def test_texts_are_exact(tokenizer, text, expected):
    assert texts(tokenizer, tokenizer.ids(text)) == expected


def test_special_tokens_are_the_callers_choice():
    assert BYTE_LEVEL.ids("The", add_special_tokens=False) == BYTE_LEVEL.ids("The")[1:]
    assert BYTE_LEVEL.facts.adds_special_tokens
    assert [token.text for token in METASPACE.facts.prefix] == ["<s>"]
    assert METASPACE.facts.suffix == ()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE])
@pytest.mark.parametrize("text", [" Paris", "a", "A"])
def test_a_token_is_named_by_its_exact_text(tokenizer, text):
    assert tokenizer.text(tokenizer.token_named(text, "target.text")) == text


def test_special_tokens_can_be_named():
    assert BYTE_LEVEL.token_named("<bos>", "target.text") == 0


@pytest.mark.parametrize(
    ("tokenizer", "text", "message"),
    [
        (BYTE_LEVEL, "", "is empty"),
        (BYTE_LEVEL, " Parisian", '" Parisian" is 2 tokens: " Paris", "ian"; name one of them or its id'),
        (BYTE_LEVEL, "é", "(id "),
        (BYTE_LEVEL, "\ufffd", "tokens"),
        (METASPACE, "Parisa", '"Parisa" is 2 tokens: "Paris", "a"'),
    ],
)
def test_what_is_not_one_token_is_refused(tokenizer, text, message):
    with pytest.raises(InvalidArgumentError) as refused:
        tokenizer.token_named(text, "target.text")
    assert message in refused.value.message
    assert refused.value.violations[0].field == "target.text"


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (BYTE_LEVEL, " Paris is", [" Paris", " is"]),
        (METASPACE, " Paris", [" Paris"]),
        (METASPACE, "Paris", ["Paris"]),
        (METASPACE, "a Paris", ["a", " Paris"]),
        (PREPENDING, " Paris", [" Paris"]),
    ],
)
def test_a_continuation_gets_no_space_of_its_own(tokenizer, text, expected):
    assert texts(tokenizer, tokenizer.continuation(text)) == expected


class Tokenizing:
    """Answers as a service with this tokenizer does."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def tokenize(self, text, *, add_special_tokens):
        return TokenizeResult(ModelIdentity("", "", ""), tuple(self._tokenizer.encode(text, add_special_tokens)))


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE, PREPENDING])
@pytest.mark.parametrize("word", ["Paris", "Parisian", "a", "日"])
def test_an_evaluation_takes_the_first_token_that_a_completion_has(tokenizer, word):
    assert FirstTokens(Tokenizing(tokenizer)).of(word) == tokenizer.continuation(f" {word}")[0]
