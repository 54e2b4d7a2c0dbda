"""What comes back, as frozen dataclasses with numpy arrays. Scores are float32, in nats unless a method says otherwise.

Shapes: L layers, H heads, T positions up to the explained one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neuron_attribution.conversations.messages import TokenOrigin
from neuron_attribution.generation import Generation
from neuron_attribution.neurons import Head, Neuron
from neuron_attribution.rendering import Displayed, page
from neuron_attribution.requests import Aggregate, Part

Scores = NDArray[np.float32]
RankingName = Literal[
    "ffn_value_neurons",
    "ffn_value_neurons_decreasing",
    "attention_value_neurons",
    "attention_value_neurons_decreasing",
    "query_ffn_neurons",
    "query_ffn_neurons_decreasing",
]


class PromotedSide(Enum):
    """Which end of a projection a neuron raises in its prompt."""

    UNKNOWN = "unknown"
    TOP = "top"
    BOTTOM = "bottom"


class ComponentKind(Enum):
    """A kind of residual stream component."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    FFN = "ffn"


@dataclass(frozen=True, slots=True)
class Token:
    """A vocabulary token. `text` keeps a leading space; bytes that are no whole character show as U+FFFD."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrediction:
    """A token's prediction by the model itself; rank 1 is the most probable token."""

    token: Token
    probability: float
    log_probability: float
    rank: int


@dataclass(frozen=True, slots=True)
class ProjectedToken:
    """A token and its bs-value without the final norm's scale."""

    token: Token
    score: float


@dataclass(frozen=True, slots=True)
class Projection:
    """A vector read through the unembedding: highest tokens first in `top`, lowest first in `bottom`."""

    top: tuple[ProjectedToken, ...] = ()
    bottom: tuple[ProjectedToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ProjectedRank:
    """Where one token stands in a projection: its value, and its rank, 1 for the highest value."""

    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a ranking was obtained: neurons that exist, were bounded, were scored exactly; whether it is guaranteed."""

    neurons: int
    bounded: int
    scored: int
    exact: bool


@dataclass(frozen=True, slots=True, repr=False)
class NeuronScore(Displayed):
    """One neuron in a ranking.

    `position` is the source position of an attention value neuron in a ranking by position, else None. `coefficient`
    is what multiplies the subvalue (attention weight times value for an attention neuron), None for query FFN neurons.
    `target` and `contrast` are where these tokens stand in the subvalue's projection, None where none was asked for.
    `activity` is the part of the server's built-in contexts in which the FFN neuron is as strong, None for others.
    Of several tokens together, `token_scores` and `token_coefficients` have what the neuron does at each of them, the
    score is the sum or mean of those, and `coefficient`, `target`, `contrast` and `activity` are None.
    """

    neuron: Neuron
    score: float
    position: int | None = None
    coefficient: float | None = None
    projection: Projection | None = None
    promoted_side: PromotedSide = PromotedSide.UNKNOWN
    target: ProjectedRank | None = None
    contrast: ProjectedRank | None = None
    activity: float | None = None
    token_scores: tuple[float, ...] = ()
    token_coefficients: tuple[float, ...] = ()

    @property
    def promoted(self) -> tuple[ProjectedToken, ...]:
        """The tokens this neuron raises in this prompt, strongest first."""
        projection = self.projection or Projection()
        return projection.bottom if self.promoted_side is PromotedSide.BOTTOM else projection.top

    @property
    def suppressed(self) -> tuple[ProjectedToken, ...]:
        """The tokens this neuron lowers in this prompt, strongest first: the other end of its projection."""
        projection = self.projection or Projection()
        return projection.top if self.promoted_side is PromotedSide.BOTTOM else projection.bottom


@dataclass(frozen=True, slots=True, repr=False)
class NeuronRanking(Displayed):
    """Neurons, strongest first."""

    neurons: tuple[NeuronScore, ...]
    coverage: Coverage


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LayerScores(Displayed):
    """Scores of whole layers: `attention` [L], `ffn` [L], both ends, and what is left: zero but for rounding."""

    attention: Scores
    ffn: Scores
    embedding_log_probability: float
    final_log_probability: float
    remainder: float


@dataclass(frozen=True, slots=True)
class HeadPosition:
    """Projections at one source position of a head: the layer's input, its attention-only part, the head's output."""

    position: int
    layer_input: Projection
    key: Projection
    value_output: Projection


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeadScore(Displayed):
    """One of the strongest heads: `position_scores` [T] and `attention_weights` [T].

    Of several tokens together, `token_scores` has its score at each, and the attention weights are their means.
    """

    head: Head
    score: float
    position_scores: Scores
    attention_weights: Scores
    positions: tuple[HeadPosition, ...] = ()
    token_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryLayer:
    """A residual stream component and its query score. `layer` is 0 for the embedding."""

    kind: ComponentKind
    layer: int
    score: float


@dataclass(frozen=True, slots=True, repr=False)
class QueryLayers(Displayed):
    """Every component, highest score first; how many value neurons were sources, how many of them were skipped."""

    layers: tuple[QueryLayer, ...]
    sources: int
    skipped_sources: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation(Displayed):
    """The explanation of one next-token prediction. Parts that were not asked for are None or empty."""

    position: int
    target: TokenPrediction
    contrast: TokenPrediction | None = None
    predictions: tuple[TokenPrediction, ...] = ()
    layers: LayerScores | None = None
    head_scores: Scores | None = None
    """[L, H]; NaN in layers without heads."""
    heads: tuple[HeadScore, ...] = ()
    heads_decreasing: tuple[HeadScore, ...] = ()
    ffn_value_neurons: NeuronRanking | None = None
    ffn_value_neurons_decreasing: NeuronRanking | None = None
    attention_value_neurons: NeuronRanking | None = None
    attention_value_neurons_decreasing: NeuronRanking | None = None
    ffn_query_layers: QueryLayers | None = None
    attention_query_layers: QueryLayers | None = None
    query_ffn_neurons: NeuronRanking | None = None
    query_ffn_neurons_decreasing: NeuronRanking | None = None
    neurons: tuple[NeuronScore, ...] = ()
    spaced_target: TokenPrediction | None = None
    """The target's text behind a space, where the target was named without one and this is more probable."""
    final_norm_scale: float = 0.0
    """The scale of the final norm that the scores were read with; 0 from an older server."""
    attention_patterns: Scores | None = None
    """Attention weights [L, H, T] of every head, where they were asked for; NaN in layers without heads."""

    def ranking(self, name: RankingName) -> NeuronRanking:
        """One of the rankings of neurons. Raises LookupError, with what to ask for, where it was not asked for."""
        return _ranking(self, name)


AGGREGATE_RANKINGS: tuple[RankingName, ...] = get_args(RankingName)[:4]
"""The rankings of several tokens together: those of value neurons."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AggregateExplanation(Displayed):
    """The explanation of several tokens together: scores are sums, or means, of those of the tokens' explanations.

    Parts that were not asked for are None or empty. Where two answers are contrasted, what the other one has is
    subtracted, and its tokens follow those of the completion in `token_scores`.
    """

    aggregate: Aggregate
    log_probability: float
    """The sum, or mean, of the model's own log probabilities of the tokens: of the completion alone."""
    positions: tuple[int, ...]
    """What each of the targets is predicted from."""
    targets: tuple[TokenPrediction, ...]
    """The explained tokens."""
    contrast_log_probability: float = 0.0
    """That of the other answer, where one is contrasted."""
    contrast_targets: tuple[TokenPrediction, ...] = ()
    """Its tokens."""
    contrasts: tuple[TokenPrediction, ...] = ()
    """The contrast token at each position, where one was given."""
    layers: LayerScores | None = None
    head_scores: Scores | None = None
    """[L, H]"""
    heads: tuple[HeadScore, ...] = ()
    heads_decreasing: tuple[HeadScore, ...] = ()
    ffn_value_neurons: NeuronRanking | None = None
    ffn_value_neurons_decreasing: NeuronRanking | None = None
    attention_value_neurons: NeuronRanking | None = None
    attention_value_neurons_decreasing: NeuronRanking | None = None
    neurons: tuple[NeuronScore, ...] = ()

    def ranking(self, name: RankingName) -> NeuronRanking:
        """One of the rankings of value neurons. Raises LookupError where it was not asked for."""
        return _ranking(self, name)


def _ranking(explanation: object, name: RankingName) -> NeuronRanking:
    found: NeuronRanking | None = getattr(explanation, name, None)
    if found is None:
        part = name.removesuffix("_decreasing").replace("_", "-")
        direction = "decrease" if name.endswith("_decreasing") else "increase"
        raise LookupError(f"the answer has no {name}: ask with parts=[{part!r}], direction={direction!r} or 'both'")
    return found


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in seconds, and the batch it shared.

    An answer from the server's cache is `cached`: nothing waited or ran, so all but the tokenization is zero.
    """

    queue: float = 0.0
    tokenization: float = 0.0
    forward: float = 0.0
    scoring: float = 0.0
    batch_requests: int = 1
    batch_tokens: int = 0
    cached: bool = False
    predicted: float = 0.0
    """The worker time that the request alone was predicted to take when it arrived."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model an answer comes from: name, revision (a commit, or a hash of its files), type of its weights."""

    name: str
    revision: str
    dtype: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttributeResult(Displayed):
    """The attribution of one or more next-token predictions; `tokens` are the exact tokens of the pass."""

    model: ModelIdentity
    tokens: tuple[Token, ...]
    explanations: tuple[Explanation, ...]
    """None where the aggregate alone was asked for."""
    timings: Timings
    generation: Generation | None = None
    """How the generation ended, where tokens were generated."""
    origins: tuple[TokenOrigin, ...] = ()
    """Where each of `tokens` comes from; empty where the prompt is no conversation."""
    aggregate: AggregateExplanation | None = None
    """The explained tokens together, where that was asked for."""

    def to_html(self) -> str:
        """The attribution as one self-contained HTML page with charts and tables."""
        return page(self)


@dataclass(frozen=True, slots=True)
class PredictionState:
    """A next-token prediction: the watched token, the most probable ones, and the continuation if asked for."""

    target: TokenPrediction
    predictions: tuple[TokenPrediction, ...]
    continuation: tuple[Token, ...] = ()
    generation: Generation | None = None
    """How the continuation ended."""


@dataclass(frozen=True, slots=True)
class InterventionResult:
    """The prediction after one set of interventions, and KL(before || after) in nats."""

    after: PredictionState
    kl_divergence: float


@dataclass(frozen=True, slots=True, repr=False)
class InterveneResult(Displayed):
    """The prediction before any intervention and after each set; `tokens` are the exact tokens of the prompt."""

    model: ModelIdentity
    tokens: tuple[Token, ...]
    before: PredictionState
    results: tuple[InterventionResult, ...]
    timings: Timings
    origins: tuple[TokenOrigin, ...] = ()
    """Where each of `tokens` comes from; empty where the prompt is no conversation."""


@dataclass(frozen=True, slots=True, repr=False)
class NeuronProjection(Displayed):
    """What one neuron means in the vocabulary."""

    neuron: Neuron
    projection: Projection


@dataclass(frozen=True, slots=True, repr=False)
class ProjectNeuronResult(Displayed):
    """What neurons mean in the vocabulary, in the request's order."""

    model: ModelIdentity
    projections: tuple[NeuronProjection, ...]


@dataclass(frozen=True, slots=True)
class TokenizedToken:
    """One token of a text and where its bytes lie in the UTF-8 text."""

    token: Token
    start: int
    end: int


@dataclass(frozen=True, slots=True, repr=False)
class TokenizeResult(Displayed):
    """The exact tokens of a text, or of a conversation, whose `text` and `origins` are given with them."""

    model: ModelIdentity
    tokens: tuple[TokenizedToken, ...]
    origins: tuple[TokenOrigin, ...] = ()
    """Where each of `tokens` comes from; empty where a text was given."""
    text: str = ""
    """What the chat template made of a conversation; empty where a text was given."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The sizes of a model."""

    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    ffn_width: int
    """Of the network that every token passes through; zero where there are only routed experts."""
    hidden_size: int
    vocabulary: int
    experts: int = 0
    expert_width: int = 0


class Mixer(Enum):
    """What moves information between positions in a layer."""

    UNKNOWN = "mixer of a kind that this client does not know"

    ATTENTION = "attention"
    SHORT_CONVOLUTION = "short convolution"
    STATE_SPACE = "state space"
    GATED_DELTA_NETWORK = "gated delta network"
    GATED_LINEAR_RECURRENCE = "gated linear recurrence"


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What one layer is made of. Without heads it has no head, position or attention neuron scores."""

    mixers: tuple[Mixer, ...]
    """Side by side where there are several; none where the layer only has an FFN."""
    heads: int
    ffn_width: int
    """Of the network that every token passes through; zero where there is none, or only routed experts."""
    experts: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service accepts; see the Limits message."""

    tokens: int
    top_k: int
    explained_tokens: int
    neurons: int
    message_bytes: int
    queued_requests: int
    queued_tokens: int
    batch_tokens: int
    batch_requests: int
    maximum_wait: float
    """Seconds."""
    maximum_age: float
    """Seconds."""
    tenant_share: float
    request_bytes: int
    stream_window: int
    exhaustive_scores: int
    intervention_sets: int
    key_bytes: int = 0
    """Zero, as those below, where an older server does not say."""
    unread_bytes: int = 0
    held_request_bytes: int = 0
    transfer_timeout: float = 0.0
    """Seconds."""
    call_unread_bytes: int = 0
    request_seconds: float = 0.0
    """Predicted seconds of a worker's time; 0 is no bound."""
    queued_seconds: float = 0.0
    """Predicted seconds of a worker's time."""
    batch_seconds: float = 0.0
    """Predicted seconds of a worker's time."""
    trace_nodes: int = 0
    trace_screened: int = 0


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What the tokenizer does by default."""

    adds_special_tokens: bool
    prefix: tuple[Token, ...] = ()
    suffix: tuple[Token, ...] = ()
    chat_template: bool = False
    """Whether the model has a chat template, which a conversation needs."""
    chat_templates: tuple[str, ...] = ()
    """Their names, where it has several: what Conversation.template may be."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """A property measured when the model was loaded: its largest error relative to the largest value."""

    name: str
    description: str
    error: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class Exactness:
    """What the rankings guarantee on this model, and why."""

    exact: bool
    explanation: str


@dataclass(frozen=True, slots=True, repr=False)
class ModelInfo(Displayed):
    """What is served."""

    model: ModelIdentity
    family: str
    """The architecture's; `guessed:` and the model's type where nobody has described it and a guess was proven."""
    device: str
    sizes: ModelSizes
    limits: Limits
    supported_parts: tuple[Part, ...]
    exactness: Exactness
    invariants: tuple[Invariant, ...]
    tokenizer: TokenizerFacts
    version: str
    activity_contexts: int = 0
    """In how many contexts the activity of FFN neurons was looked at; 0 where it was not."""
    ranges_ready: float = 0.0
    """The part that is ready of what bounds decreases; until it is whole, requests for them wait for the rest."""
    layers: tuple[LayerParts, ...] = ()
    """What each layer is made of; empty from a server that does not say."""
    untraceable: str = ""
    """What of the model no trace can hold; empty where it can be traced, or from an older server."""
