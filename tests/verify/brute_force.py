"""Every neuron scored against the whole vocabulary.

A neuron v with coefficient a (over the frozen scale) adds a * P to the logits, P = W_U (gamma * v), so

    log probability increase = a P[target] - log sum_j p_j exp(a P_j)
    increase of log p(target) - log p(contrast) = a (P[target] - P[contrast])

P is the same in every prompt and at every source position. It is computed once per neuron, a block of neurons at a
time, and all prompts are evaluated while it is there. The terms are float32, their sums over blocks of the vocabulary
and everything that depends on single tokens float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from verify.states import States
from verify.subjects import Subject

NEURONS_AT_ONCE = 64
TOKENS_AT_ONCE = 2048
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
    units: slice


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
        self._scores = [{kind: _empty(getattr(each, f"{kind}_coefficients")) for kind in KINDS} for each in prompts]

    def run(self, layers: Sequence[tuple[str, int]] | None = None) -> list[dict[str, Scores]]:
        """The scores of each prompt, by kind; only those of some kinds' `layers` are filled in where they are given."""
        if layers is None:
            layers = [(kind, layer) for kind in KINDS for layer in range(len(self._subvalues[kind]))]
        blocks = [
            _Block(kind, layer, slice(start, start + NEURONS_AT_ONCE))
            for kind, layer in layers
            for start in range(0, len(self._subvalues[kind][layer]), NEURONS_AT_ONCE)
        ]
        progress = tqdm(total=len(blocks), desc="brute force", unit="block", smoothing=0.05)
        with progress, ThreadPoolExecutor(self._threads, initializer=_one_thread) as pool:
            for _ in pool.map(self._score, blocks):
                progress.update()
        return self._scores

    @torch.no_grad()
    def _score(self, block: _Block) -> None:
        folded = self._subvalues[block.kind][block.layer][block.units] * self._gamma
        logits = folded @ self._unembedding.T
        expected = self._expected(block, logits)
        for prompt, scores, mean in zip(self._prompts, self._scores, expected, strict=True):
            factors = _factors(prompt, block)
            target, contrast = (
                (folded.double() @ self._unembedding[token].double())[:, None] * factors
                for token in (prompt.target, prompt.contrast)
            )
            scores[block.kind].increase[block.layer, block.units] = target - mean
            scores[block.kind].contrast[block.layer, block.units] = target - contrast

    def _expected(self, block: _Block, logits: Tensor) -> list[Tensor]:
        """log sum_j p_j exp(a P_j) for the block's neurons in every prompt, [neurons, positions] each."""
        factors = [_factors(prompt, block) for prompt in self._prompts]
        probabilities = [getattr(prompt, f"{block.kind}_probabilities")[block.layer] for prompt in self._prompts]
        sums = _sums_of_exponentials(logits, factors, probabilities)
        largest = logits.abs().amax(1, keepdim=True)
        for total, factor, chances in zip(sums, factors, probabilities, strict=True):
            total.log_()
            for row, column in (factor.abs() * largest > LARGEST_EXPONENT).nonzero().tolist():
                exponents = logits[row].double() * factor[row, column] + chances.double().log()
                total[row, column] = exponents.logsumexp(0)
        return sums


def _sums_of_exponentials(logits: Tensor, factors: list[Tensor], probabilities: list[Tensor]) -> list[Tensor]:
    sums = [torch.zeros_like(factor) for factor in factors]
    columns = [factor.float().T.contiguous()[:, :, None] for factor in factors]
    buffer = torch.empty(len(logits), TOKENS_AT_ONCE)
    for start in range(0, logits.shape[1], TOKENS_AT_ONCE):
        tile = logits[:, start : start + TOKENS_AT_ONCE].contiguous()
        terms = buffer[:, : tile.shape[1]]
        for total, factor, chances in zip(sums, columns, probabilities, strict=True):
            weights = chances[start : start + TOKENS_AT_ONCE]
            for position, column in enumerate(factor):
                total[:, position] += torch.mul(tile, column, out=terms).exp_() @ weights
    return sums


def _written(projection: nn.Module, subject: Subject, norm: nn.Module | None) -> Tensor:
    """What the neurons of a projection write, through the norm behind it, whose scale is in the coefficients."""
    rows = projection.weight.detach().T
    return rows if norm is None else rows * subject.weight(norm)


def _factors(prompt: States, block: _Block) -> Tensor:
    """Coefficients of the block's neurons, [neurons, positions]."""
    found: Tensor = getattr(prompt, f"{block.kind}_coefficients")[block.layer, block.units]
    return found


def _empty(coefficients: Tensor) -> Scores:
    return Scores(torch.empty_like(coefficients), torch.empty_like(coefficients))


def _one_thread() -> None:
    """Each block has a thread of its own; the products within one need no more."""
    torch.set_num_threads(1)
