"""What comparisons of predictions come to, as frozen dataclasses with numpy arrays.

A difference is the first side's value minus the second's. Shapes: L layers, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuron_attribution.neurons import Neuron
from neuron_attribution.rendering import Displayed, page
from neuron_attribution.results import LayerScores, ModelIdentity, NeuronScore, Scores, Token, TokenPrediction


@dataclass(frozen=True, slots=True, eq=False)
class ComparedSide:
    """One of two predictions: the exact tokens, the explained token, and the scores of layers and heads [L, H].

    Scores of heads are not numbers in layers without heads.
    """

    model: ModelIdentity
    tokens: tuple[Token, ...]
    target: TokenPrediction
    contrast: TokenPrediction | None
    predictions: tuple[TokenPrediction, ...]
    layers: LayerScores
    head_scores: Scores


@dataclass(frozen=True, slots=True)
class NeuronDifference:
    """One neuron on both sides; an attention neuron is scored over all source positions together."""

    neuron: Neuron
    first: NeuronScore
    second: NeuronScore

    @property
    def difference(self) -> float:
        """The first side's score minus the second's."""
        return self.first.score - self.second.score


@dataclass(frozen=True, slots=True)
class DifferenceRanking:
    """The neurons whose score differs most in one direction, most first.

    Those that were not scored on both sides differ by at most `bound`, rounding included; it is -inf where there are
    none. Where it exceeds the last one's difference, a neuron may be missing whose difference is larger than that by up
    to `gap`. An `exact` ranking is that of scoring every neuron on both sides; without a gap it fails to be guaranteed
    only where the sides' own rankings do.
    """

    neurons: tuple[NeuronDifference, ...]
    bound: float
    gap: float
    exact: bool


@dataclass(frozen=True, slots=True)
class NeuronComparison:
    """The neurons of one kind whose score differs most.

    `fell`: from the first side to the second; `rose`: the other way. `neurons` exist, `scored` of them were scored on
    both sides, and each side's `depth` highest and lowest were looked at.
    """

    neurons: int
    scored: int
    depth: int
    fell: DifferenceRanking
    rose: DifferenceRanking


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison(Displayed):
    """Two predictions and what differs between them."""

    first: ComparedSide
    second: ComparedSide
    ffn_neurons: NeuronComparison
    attention_neurons: NeuronComparison

    @property
    def attention_layers(self) -> Scores:
        """Differences of the attention layers' scores, [L]."""
        return self.first.layers.attention - self.second.layers.attention

    @property
    def ffn_layers(self) -> Scores:
        """Differences of the FFN layers' scores, [L]."""
        return self.first.layers.ffn - self.second.layers.ffn

    @property
    def heads(self) -> Scores:
        """Differences of the heads' scores, [L, H]."""
        return self.first.head_scores - self.second.head_scores

    def to_html(self) -> str:
        """The comparison as one self-contained HTML page with charts and tables."""
        return page(self)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeadEffects(Displayed):
    """What a prediction becomes when each head in turn is zeroed at every position, [L, H] each; NaN without heads.

    `target` is the watched token before that; `kl_divergences` are KL(before || after) in nats.
    """

    model: ModelIdentity
    tokens: tuple[Token, ...]
    target: TokenPrediction
    probabilities: Scores
    log_probabilities: Scores
    kl_divergences: Scores

    @property
    def changes(self) -> Scores:
        """What zeroing each head adds to the target's probability, [L, H]: negative where the head helps."""
        return self.probabilities - np.float32(self.target.probability)
