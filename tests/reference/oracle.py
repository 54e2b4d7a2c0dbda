"""Attribution by brute force in float64, written from the definitions and sharing nothing with the engine.

oracle = Oracle(model, token_ids)
explained = oracle.explain(position=4, target=17)
explained.layer_scores(), explained.head_scores(), explained.ffn_neuron_scores(), ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.requests import ScoringMethod
from torch import Tensor, nn

from reference.forward import States, forward
from reference.methods import score_vectors
from reference.unembedding import FrozenUnembedding
from reference.weights import Weights, read_weights

FfnKey = tuple[int, int]
"""layer, neuron"""
AttentionKey = tuple[int, int, int, int]
"""layer, head, dimension, source position"""


@dataclass(frozen=True)
class Prediction:
    """The model's own prediction of a token; rank 1 is the most probable."""

    token: int
    probability: float
    log_probability: float
    rank: int


@dataclass(frozen=True)
class LayerScores:
    """attention [L], ffn [L]; remainder = final − embedding − Σ."""

    attention: Tensor
    ffn: Tensor
    embedding: float
    final: float
    remainder: float


class Oracle:
    """One prompt through one model."""

    def __init__(
        self,
        model: nn.Module,
        token_ids: Sequence[int],
        weights: Weights | None = None,
        states: States | None = None,
    ) -> None:
        self.token_ids = tuple(token_ids)
        self.weights = weights or read_weights(model)
        self.states: States = states or forward(self.weights, token_ids)

    def prediction(self, position: int, token: int) -> Prediction:
        """The model's own prediction of `token` at `position`."""
        logits = self.states.logits[position]
        log_probability = torch.log_softmax(logits, 0)[token].item()
        rank = 1 + int((logits > logits[token]).sum())
        return Prediction(token, torch.exp(torch.tensor(log_probability)).item(), log_probability, rank)

    def top_token(self, position: int) -> int:
        """The model's most probable next token at `position`."""
        return int(self.states.logits[position].argmax())

    def explain(
        self,
        position: int | None = None,
        target: int | None = None,
        contrast: int | None = None,
        include_final_norm_bias: bool = False,
    ) -> Explained:
        """The prediction at `position` (the last by default) of `target` (the model's top token by default)."""
        position = len(self.token_ids) - 1 if position is None else position
        target = self.top_token(position) if target is None else target
        return Explained(self, position, target, contrast, include_final_norm_bias)


class Explained:
    """One explained prediction; every score is in float64."""

    def __init__(self, oracle: Oracle, position: int, target: int, contrast: int | None, include_bias: bool) -> None:
        self.oracle = oracle
        self.weights = oracle.weights
        self.layers = oracle.states.layers
        self.position, self.target, self.contrast = position, target, contrast
        self.unembedding = FrozenUnembedding(self.weights, oracle.states.final[position], include_bias)
        self._heads = range(self.weights.heads)
        self._ffn_scores: dict[tuple[ScoringMethod, int], dict[FfnKey, float]] = {}
        self._attention_scores: dict[tuple[ScoringMethod, int], dict[AttentionKey, float]] = {}

    def value(self, vectors: Tensor) -> Tensor:
        """f(v), or with a contrast log p(target) − log p(contrast). [..., d] -> [...]"""
        log_probabilities = self.unembedding.log_probabilities(self.unembedding.bs(vectors))
        if self.contrast is None:
            return log_probabilities[..., self.target]
        return log_probabilities[..., self.target] - log_probabilities[..., self.contrast]

    def score(self, base: Tensor, vectors: Tensor) -> Tensor:
        """f(base + v) − f(base); each base may have vectors of its own. [..., d], [..., d] -> [...]"""
        return self.value(base + vectors) - self.value(base)

    def attention_base(self, layer: int) -> Tensor:
        """x_l[t] [d]"""
        return self.layers[layer].input[self.position]

    def ffn_base(self, layer: int) -> Tensor:
        """r_l[t] [d]"""
        return self.layers[layer].middle[self.position]

    def attention_bases(self) -> Tensor:
        """[L, d]"""
        return torch.stack([self.attention_base(layer) for layer in range(len(self.layers))])

    def ffn_bases(self) -> Tensor:
        """[L, d]"""
        return torch.stack([self.ffn_base(layer) for layer in range(len(self.layers))])

    def layer_scores(self) -> LayerScores:
        """Scores of every attention and FFN layer, and both ends."""
        t = self.position
        attention = self.score(self.attention_bases(), torch.stack([layer.attention[t] for layer in self.layers]))
        ffn = self.score(self.ffn_bases(), torch.stack([layer.ffn[t] for layer in self.layers]))
        embedding = self.value(self.layers[0].input[t]).item()
        final = self.value(self.oracle.states.final[t]).item()
        return LayerScores(
            attention, ffn, embedding, final, final - embedding - attention.sum().item() - ffn.sum().item()
        )

    def attention_coefficients(self, layer: int, head: int) -> Tensor:
        """α_l[h,p] · v_l[h,p,k], gated, for every source position and dimension. [t + 1, D]"""
        states, visible = self.layers[layer], self.position + 1
        pattern = states.attention_weights[head, self.position, :visible]
        coefficients = pattern[:, None] * states.values[head, :visible]
        if states.gates is not None:
            coefficients = coefficients * states.gates[head, self.position]
        return coefficients if states.attention_scale is None else coefficients / states.attention_scale[self.position]

    def position_vectors(self, layer: int, head: int) -> Tensor:
        """What the head adds from each source position. [t + 1, d]"""
        return self.attention_coefficients(layer, head) @ self.weights.output_rows(layer, head)

    def head_scores(self) -> Tensor:
        """[L, H]; not a number in layers without heads."""
        layers = range(len(self.layers))
        writes = [torch.stack([self.position_vectors(layer, head).sum(0) for head in self._heads]) for layer in layers]
        scores = self.score(self.attention_bases()[:, None], torch.stack(writes))
        scores[[not len(layer.output) for layer in self.weights.layers]] = torch.nan
        return scores

    def position_scores(self, layer: int, head: int) -> Tensor:
        """[t + 1]"""
        return self.score(self.attention_base(layer), self.position_vectors(layer, head))

    def attention_weights(self, layer: int, head: int) -> Tensor:
        """[t + 1]"""
        return self.layers[layer].attention_weights[head, self.position, : self.position + 1]

    def ffn_layer_scores(
        self, layer: int, method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE
    ) -> dict[FfnKey, float]:
        """Every FFN value neuron of one layer, computed once."""
        if (method, layer) not in self._ffn_scores:
            self._ffn_scores[method, layer] = self._score_ffn_layer(layer, method)
        return self._ffn_scores[method, layer]

    def _score_ffn_layer(self, layer: int, method: ScoringMethod) -> dict[FfnKey, float]:
        coefficients = self.layers[layer].coefficients[self.position]
        scores = score_vectors(
            self, self.ffn_base(layer), self.weights.layers[layer].down, coefficients[:, None], method
        )
        return self._by_ffn_neuron(layer, scores[:, 0])

    def ffn_scores_of(self, layer: int, units: Tensor) -> Tensor:
        """Some FFN value neurons of one layer. [n] -> [n]"""
        coefficients = self.layers[layer].coefficients[self.position, units]
        return self.score(self.ffn_base(layer), coefficients[:, None] * self.weights.layers[layer].down[units])

    def _by_ffn_neuron(self, layer: int, scores: Tensor) -> dict[FfnKey, float]:
        name = self.weights.layers[layer].name
        return {(layer, name(neuron)): score for neuron, score in enumerate(scores.tolist())}

    def ffn_neuron_scores(self, method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE) -> dict[FfnKey, float]:
        """Every FFN value neuron of the model."""
        return {key: s for i in range(len(self.layers)) for key, s in self.ffn_layer_scores(i, method).items()}

    def attention_layer_scores(
        self, layer: int, method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE
    ) -> dict[AttentionKey, float]:
        """Every attention value neuron of one layer at every source position, computed once."""
        if (method, layer) not in self._attention_scores:
            self._attention_scores[method, layer] = self._score_attention_layer(layer, method)
        return self._attention_scores[method, layer]

    def _score_attention_layer(self, layer: int, method: ScoringMethod) -> dict[AttentionKey, float]:
        coefficients = torch.cat([self.attention_coefficients(layer, head).T for head in self._heads])
        return self._by_attention_neuron(layer, self._score_attention(layer, coefficients, method))

    def attention_scores_of(self, layer: int, units: Tensor, positions: Tensor) -> Tensor:
        """Some attention value neurons of a layer, numbered through its heads, at source positions. [n], [n] -> [n]"""
        coefficients = torch.cat([self.attention_coefficients(layer, head).T for head in self._heads])
        rows = torch.cat([self.weights.output_rows(layer, head) for head in self._heads])
        return self.score(self.attention_base(layer), coefficients[units, positions][:, None] * rows[units])

    def _by_attention_neuron(self, layer: int, scores: Tensor) -> dict[AttentionKey, float]:
        return {
            (layer, *divmod(unit, self.weights.size_of_heads(layer)), position): score
            for unit, of_neuron in enumerate(scores.tolist())
            for position, score in enumerate(of_neuron)
        }

    def _score_attention(self, layer: int, coefficients: Tensor, method: ScoringMethod) -> Tensor:
        """All heads' neurons with some coefficients each. [H·D, P] -> [H·D, P]"""
        rows = torch.cat([self.weights.output_rows(layer, head) for head in self._heads])
        return score_vectors(self, self.attention_base(layer), rows, coefficients, method)

    def attention_neuron_scores(
        self, method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE
    ) -> dict[AttentionKey, float]:
        """Every attention value neuron of the model at every source position."""
        return {key: s for i in range(len(self.layers)) for key, s in self.attention_layer_scores(i, method).items()}

    def take_scores(self, ffn: Tensor, attention: Tensor) -> None:
        """Every value neuron's log probability increase as it was computed elsewhere. [L, N], [L, H·D, t + 1]"""
        method = ScoringMethod.LOG_PROBABILITY_INCREASE
        for layer, scores in enumerate(ffn):
            self._ffn_scores[method, layer] = self._by_ffn_neuron(layer, scores)
        for layer, scores in enumerate(attention):
            self._attention_scores[method, layer] = self._by_attention_neuron(layer, scores)

    def whole_attention_neuron_scores(
        self, method: ScoringMethod = ScoringMethod.LOG_PROBABILITY_INCREASE
    ) -> dict[tuple[int, int, int], float]:
        """Every attention value neuron with all its source positions together, by layer, head and dimension."""
        found = {}
        for layer in range(len(self.layers)):
            sums = torch.cat([self.attention_coefficients(layer, head).sum(0) for head in self._heads])
            scores = self._score_attention(layer, sums[:, None], method)[:, 0].tolist()
            size = self.weights.size_of_heads(layer)
            found |= {(layer, *divmod(unit, size)): score for unit, score in enumerate(scores)}
        return found

    def ffn_coefficient(self, layer: int, neuron: int) -> float:
        """m_l[n] at the explained position."""
        unit = self.weights.layers[layer].unit(neuron)
        return self.layers[layer].coefficients[self.position, unit].item()

    def attention_coefficient(self, layer: int, head: int, k: int, position: int | None = None) -> float:
        """α · v[k] at a source position, or summed over all of them."""
        coefficients = self.attention_coefficients(layer, head)[:, k]
        return (coefficients.sum() if position is None else coefficients[position]).item()

    def whole_attention_neuron_score(self, layer: int, head: int, k: int) -> float:
        """An attention neuron with all its source positions together."""
        vector = self.attention_coefficient(layer, head, k) * self.weights.output_rows(layer, head)[k]
        return self.score(self.attention_base(layer), vector).item()
