"""Brute force in float64 over the float32 states that the engine scores.

The oracle computes its own states, whose difference from float32 ones grows with the model's sensitivity: weights in
the thousands make it larger than any tolerance. What a ranking promises is about the states that were captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.requests import ScoringMethod
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows
from torch import Tensor

from reference.compared import Compared
from reference.methods import score_vectors
from reference.unembedding import FrozenUnembedding, project

NeuronScores = dict[tuple[int, ...], tuple[float, float]]
"""The score of each neuron, and how far float32 may move it."""
OF_LOGITS = {
    ScoringMethod.LOG_PROBABILITY_INCREASE,
    ScoringMethod.LOG_PROBABILITY,
    ScoringMethod.PROBABILITY_INCREASE,
}
OF_RANKS = (ScoringMethod.RECIPROCAL_RANK, ScoringMethod.COEFFICIENT_RECIPROCAL_RANK)
ROUNDING = 4 * 2.0**-24
"""Four roundings: of the base's logits, of the neuron's, of their sum and of the target's."""


@torch.no_grad()
def captured(compared: Compared, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> list[Row]:
    """The predictions after positions of sequences that share a pass."""
    view = ModelView(compared.model, FAMILIES[compared.model.config.model_type])
    states = capture(view, sequences, ExplainedRows.from_counts(positions, torch.device("cpu")))
    places = [(sequence, position) for sequence, mine in enumerate(positions) for position in mine]
    return [Row(states, number, *place) for number, place in enumerate(places)]


@dataclass(frozen=True)
class Row:
    """One prediction of a pass: its number, its sequence, and its position there."""

    states: CapturedStates
    number: int
    sequence: int
    position: int


class CapturedPrediction:
    """The prediction after the last of `token_ids`, or after a `row` of a pass, from the states that are captured."""

    def __init__(
        self,
        compared: Compared,
        token_ids: Sequence[int],
        target: int,
        contrast: int | None,
        include_bias: bool,
        row: Row | None = None,
    ) -> None:
        self.target, self.contrast = target, contrast
        self.weights = compared.weights
        if row is None:
            [row] = captured(compared, [token_ids], [[len(token_ids) - 1]])
        states, number, here = row.states, row.number, (row.sequence, row.position)
        length = row.position + 1
        self._inputs = [state[here].float() for state in states.inputs]
        self._middles = [
            state + write[here].float() for state, write in zip(self._inputs, states.attention_writes, strict=False)
        ]
        self._coefficients = [state.flatten(0, -2)[number].double() for state in states.coefficients]
        self._patterns = [state[number, :, :length].double() for state in states.attention_rows]
        self._values = [state[row.sequence, :, :length].double() for state in states.values]
        self._outputs = [state.flatten(0, -2)[number].double() for state in states.head_outputs]
        self.unembedding = FrozenUnembedding(self.weights, self._inputs[-1].double(), include_bias)

    def ffn(self, method: ScoringMethod) -> NeuronScores:
        """By (layer, neuron)."""
        found: NeuronScores = {}
        for number, layer in enumerate(self.weights.layers):
            coefficients = self._coefficients[number][:, None]
            scores, rounding = self._scored(self._middles[number], layer.down, coefficients, method)
            for neuron, pair in enumerate(zip(scores[:, 0].tolist(), rounding[:, 0].tolist(), strict=True)):
                found[number, neuron] = pair
        return found

    def attention(self, method: ScoringMethod) -> NeuronScores:
        """By (layer, head, dimension, source position)."""
        found: NeuronScores = {}
        for number, pattern in enumerate(self._patterns):
            for head, row in enumerate(pattern):
                coefficients = (row[:, None] * self._values[number][self.weights.key_value_head(head)]).T
                rows = self.weights.output_rows(number, head)
                scores, rounding = self._scored(self._inputs[number], rows, coefficients, method)
                for k, of_neuron in enumerate(zip(scores.tolist(), rounding.tolist(), strict=True)):
                    for position, pair in enumerate(zip(*of_neuron, strict=True)):
                        found[number, head, k, position] = pair
        return found

    def whole_attention(self, method: ScoringMethod) -> NeuronScores:
        """By (layer, head, dimension), over all source positions together."""
        found: NeuronScores = {}
        for number, output in enumerate(self._outputs):
            for head, coefficients in enumerate(output.view(self.weights.heads, -1)):
                rows = self.weights.output_rows(number, head)
                scores, rounding = self._scored(self._inputs[number], rows, coefficients[:, None], method)
                for k, pair in enumerate(zip(scores[:, 0].tolist(), rounding[:, 0].tolist(), strict=True)):
                    found[number, head, k] = pair
        return found

    def _scored(
        self, base: Tensor, vectors: Tensor, coefficients: Tensor, method: ScoringMethod
    ) -> tuple[Tensor, Tensor]:
        """Scores of every coefficient of every vector, and their rounding, which is that of the largest logits."""
        base = base.double()
        scores = score_vectors(self, base, vectors, coefficients, method)
        fold, scale = self.weights.final_norm.fold, self.unembedding.scale
        longest = self.weights.unembedding.norm(dim=1).max() / scale
        lengths = fold(vectors).norm(dim=1, keepdim=True)
        if method in OF_LOGITS:
            return scores, ROUNDING * longest * (fold(base).norm() + coefficients.abs() * lengths)
        if method in OF_RANKS:
            doubt = self._doubt(vectors, ROUNDING * longest * scale * lengths)
            return scores, doubt * (coefficients.abs() if method is OF_RANKS[1] else torch.ones_like(coefficients))
        return scores, ROUNDING * scores.abs()

    def _doubt(self, vectors: Tensor, rounding: Tensor) -> Tensor:
        """How far the target's reciprocal rank moves where other tokens are as close to it as rounding. [n, 1]"""
        projections = project(self.weights, vectors)
        distances = projections - projections[:, [self.target]]
        clearly = (distances > rounding).sum(1, keepdim=True)
        possibly = (distances >= -rounding).sum(1, keepdim=True)
        return 1 / (1 + clearly) - 1 / possibly.clamp_min(1)
