"""What bounds decreases: computed part by part, remembered part by part, and never below what it bounds."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from neuron_attribution_server.model.attribution.projection import vocabulary_ranges
from neuron_attribution_server.model.attribution.search.value_search import Kind
from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.model.loading import ranges
from neuron_attribution_server.model.loading.ranges import VocabularyRanges
from reference.compared import compare_tiny


@pytest.fixture(autouse=True)
def _one_type_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is faster is measured, and may change from one time to the next."""
    monkeypatch.setattr(ranges, "_halves_are_faster", lambda *_: False)


@pytest.fixture
def weights():
    return compare_tiny("llama").engine._explainer._weights


@pytest.mark.parametrize("spread", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_ranges_from_halves_are_never_below_the_exact_ones(seed: int, spread: float) -> None:
    """Nor far above them. Rows of very different sizes are rounded differently."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3000, 64, generator=generator) * torch.logspace(-2, 2, 64)
    vectors = torch.randn(500, 64, generator=generator) * torch.logspace(-3, 3, 500)[:, None] * spread
    largest = float(weight.norm(dim=-1).max())
    unembedding = Unembedding(weight, torch.ones(64), 1e-6, False, None, largest)
    exact = (vectors.double() @ weight.double().T).aminmax(dim=-1)
    wanted = exact.max - exact.min
    found = vocabulary_ranges(unembedding, vectors, halves=True)
    assert (found.double() >= wanted).all()
    assert (found.double() <= wanted + 0.05 * largest * vectors.double().norm(dim=-1)).all()


def test_parts_are_done_one_by_one_and_a_request_does_what_is_left(weights, tmp_path: Path) -> None:
    right = VocabularyRanges(weights, None)()
    mine = VocabularyRanges(weights, tmp_path / "ranges")
    assert (mine.done, mine.parts) == (0, 2 * len(weights.ffn_subvalues))
    assert mine.advance()
    assert mine.advance()
    assert mine.done == 2
    kept = sorted(path.name for path in (tmp_path / "ranges").iterdir())
    assert kept == ["ffn-0.safetensors", "ffn-1.safetensors"]
    for found in (mine(), mine()):
        assert all(torch.equal(found[kind], right[kind]) for kind in Kind)
    assert mine.done == mine.parts
    assert not mine.advance()


def test_what_is_kept_is_not_computed_again(weights, tmp_path: Path) -> None:
    """As after a death: at most the part that was being done is lost."""
    first = VocabularyRanges(weights, tmp_path / "ranges")
    for _ in range(3):
        first.advance()
    computed = []
    right = ranges.vocabulary_ranges

    def counting(*arguments, **options):
        computed.append(1)
        return right(*arguments, **options)

    again = VocabularyRanges(weights, tmp_path / "ranges")
    with (
        patch.object(ranges, "vocabulary_ranges", counting),
        patch.object(ranges, "_halves_are_faster", return_value=False),
    ):
        found = again()
    assert len(computed) == again.parts - 3
    assert all(torch.equal(found[kind], VocabularyRanges(weights, None)()[kind]) for kind in Kind)


@pytest.mark.parametrize("halves", [False, True])
def test_the_faster_type_of_numbers_is_taken(weights, halves: bool) -> None:
    with patch.object(ranges, "_halves_are_faster", return_value=halves):
        found = VocabularyRanges(weights, None)()
    exact = VocabularyRanges(weights, None)
    with patch.object(ranges, "_halves_are_faster", return_value=False):
        for kind in Kind:
            assert torch.equal(found[kind], exact()[kind]) is not halves
            assert (found[kind] >= exact()[kind] - 1e-5).all()
