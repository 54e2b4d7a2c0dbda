"""Every neuron scored against the whole vocabulary.

A neuron v with coefficient a (over the frozen scale) adds a * P to the logits, P = W_U (gamma * v), so

    log probability increase = a P[target] - log sum_j p_j exp(a P_j)
    increase of log p(target) - log p(contrast) = a (P[target] - P[contrast])

P is the same in every prompt and at every source position. It is computed once per neuron, in the type of the model,
for a block of neurons and tokens at a time, and all prompts are evaluated while it is there. The terms have the type of
the prompt's probabilities; their sums over blocks of the vocabulary and everything that depends on single tokens are
float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from verify.states import States
from verify.subjects import Subject

NEURONS_AT_ONCE = 256
TOKENS_AT_ONCE = 512
LARGEST_EXPONENT = 40.0
"""Beyond it float32 sums of exponentials are replaced by a log-sum-exp in float64."""
KINDS = ("ffn", "attention")


@dataclass(frozen=True)
class Scores:
    """Every neuron's scores for one prompt and kind: [L, n, positions], float64."""

    increase: Tensor
    contrast: Tensor


@dataclass(frozen=True)
class _Block:
    kind: str
    layer: int
    units: Tensor


class BruteForce:
    """Scores all neurons of a model for all prompts, on `threads` threads."""

    def __init__(self, subject: Subject, model: Any, prompts: Sequence[States], threads: int) -> None:
        self._prompts = prompts
        self._threads = threads
        self._unembedding = model.lm_head.weight
        self._gamma = subject.weight(model.model.norm)
        self._subvalues = {
            "ffn": [_written(layer.mlp.down_proj, subject, subject.ffn_norm(layer)) for layer in model.model.layers],
            "attention": [
                _written(layer.self_attn.o_proj, subject, subject.attention_norm(layer)) for layer in model.model.layers
            ],
        }
        self.largest = {kind: torch.empty_like(getattr(prompts[0], f"{kind}_coefficients")[..., 0]) for kind in KINDS}
        """The largest |P_j| of every neuron that has been scored, [L, n]."""
        self._scores = [{kind: _empty(getattr(each, f"{kind}_coefficients")) for kind in KINDS} for each in prompts]

    def run(self, layers: Sequence[tuple[str, int]] | None = None) -> list[dict[str, Scores]]:
        """The scores of each prompt, by kind; only those of some kinds' `layers` are filled in where they are given."""
        if layers is None:
            layers = [(kind, layer) for kind in KINDS for layer in range(len(self._subvalues[kind]))]
        every = {(kind, layer): torch.arange(len(self._subvalues[kind][layer])) for kind, layer in layers}
        return self.run_some(every)

    def run_some(self, units: Mapping[tuple[str, int], Tensor]) -> list[dict[str, Scores]]:
        """The same of some units of a kind's layers; not a number elsewhere."""
        blocks = [
            _Block(kind, layer, some) for (kind, layer), every in units.items() for some in every.split(NEURONS_AT_ONCE)
        ]
        progress = tqdm(total=len(blocks), desc="brute force", unit="block", smoothing=0.05)
        with progress, ThreadPoolExecutor(self._threads, initializer=_one_thread) as pool:
            for _ in pool.map(self._score, blocks):
                progress.update()
        return self._scores

    @torch.no_grad()
    def bounds(self, largest: Mapping[str, Tensor]) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """What the increase of every neuron is at least and at most in each prompt, by kind, [L, n, positions] each.

        By Jensen's inequality and Hoeffding's lemma, log sum_j p_j exp(a P_j) is between a times the mean of P_j and
        (a max |P_j|)^2 / 2 more.
        """
        found = []
        for prompt in self._prompts:
            kinds = {}
            for kind in KINDS:
                factors = getattr(prompt, f"{kind}_coefficients")
                probabilities = getattr(prompt, f"{kind}_probabilities")
                slopes = self._unembedding[prompt.target].double() - (probabilities @ self._unembedding).double()
                rows = [each @ slope for each, slope in zip(self._folded(kind), slopes, strict=True)]
                most = torch.stack(rows)[..., None] * factors
                kinds[kind] = most - (factors * largest[kind][..., None]).square() / 2, most
            found.append(kinds)
        return found

    def _folded(self, kind: str) -> Iterator[Tensor]:
        """The subvalues of each layer as the unembedding reads them."""
        return ((layer * self._gamma).double() for layer in self._subvalues[kind])

    @torch.no_grad()
    def _score(self, block: _Block) -> None:
        folded = self._subvalues[block.kind][block.layer][block.units] * self._gamma
        expected = self._expected(block, folded)
        for prompt, scores, mean in zip(self._prompts, self._scores, expected, strict=True):
            factors = _factors(prompt, block)
            target, contrast = (
                (folded.double() @ self._unembedding[token].double())[:, None] * factors
                for token in (prompt.target, prompt.contrast)
            )
            scores[block.kind].increase[block.layer, block.units] = target - mean
            scores[block.kind].contrast[block.layer, block.units] = target - contrast

    def _expected(self, block: _Block, folded: Tensor) -> list[Tensor]:
        """log sum_j p_j exp(a P_j) for the block's neurons in every prompt, [neurons, positions] each."""
        factors = [_factors(prompt, block) for prompt in self._prompts]
        probabilities = [getattr(prompt, f"{block.kind}_probabilities")[block.layer] for prompt in self._prompts]
        sums, largest = self._sums_of_exponentials(folded, factors, probabilities)
        self.largest[block.kind][block.layer, block.units] = largest.to(self.largest[block.kind])
        for total, factor, chances in zip(sums, factors, probabilities, strict=True):
            total.log_()
            for row, column in (factor.abs() * largest[:, None] > LARGEST_EXPONENT).nonzero().tolist():
                logits = (self._unembedding @ folded[row]).double()
                total[row, column] = (logits * factor[row, column] + chances.double().log()).logsumexp(0)
        return sums

    def _sums_of_exponentials(
        self, folded: Tensor, factors: list[Tensor], probabilities: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """sum_j p_j exp(a P_j), [neurons, positions] for every prompt, and the largest |P_j|, [neurons]."""
        sums = [torch.zeros_like(factor) for factor in factors]
        largest = torch.zeros(len(folded), dtype=folded.dtype)
        dtypes = {chances.dtype for chances in probabilities}
        columns = [factor.to(p.dtype).T[:, :, None] for factor, p in zip(factors, probabilities, strict=True)]
        for start in range(0, len(self._unembedding), TOKENS_AT_ONCE):
            tokens = slice(start, start + TOKENS_AT_ONCE)
            tile = folded @ self._unembedding[tokens].T
            largest = torch.stack([largest, tile.amax(1), -tile.amin(1)]).amax(0)
            tiles = {dtype: (tile.to(dtype), torch.empty_like(tile, dtype=dtype)) for dtype in dtypes}
            for total, factor, chances in zip(sums, columns, probabilities, strict=True):
                logits, terms = tiles[chances.dtype]
                for position, column in enumerate(factor):
                    total[:, position] += torch.mul(logits, column, out=terms).exp_() @ chances[tokens]
        return sums, largest


def _written(projection: nn.Module, subject: Subject, norm: nn.Module | None) -> Tensor:
    """What the neurons of a projection write, through the norm behind it, whose scale is in the coefficients."""
    rows = projection.weight.detach().T
    return rows if norm is None else rows * subject.weight(norm)


def _factors(prompt: States, block: _Block) -> Tensor:
    """Coefficients of the block's neurons, [neurons, positions]."""
    found: Tensor = getattr(prompt, f"{block.kind}_coefficients")[block.layer, block.units]
    return found


def _empty(coefficients: Tensor) -> Scores:
    return Scores(torch.full_like(coefficients, torch.nan), torch.full_like(coefficients, torch.nan))


def _one_thread() -> None:
    """Each block has a thread of its own; the products within one need no more."""
    torch.set_num_threads(1)
