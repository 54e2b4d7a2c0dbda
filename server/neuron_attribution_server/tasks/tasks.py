"""What is asked of a worker: token ids and what to do with them. Each task says what it puts into a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import AttentionNeuron, Head, Neuron
from neuron_attribution.requests import (
    AttributeOptions,
    Direction,
    Intervention,
    InterventionSet,
    LayerPartKind,
    Part,
    Side,
    Subkey,
)
from neuron_attribution.traces import SCREENED_PER_NODE, TraceOptions

RANKED_PARTS = frozenset({Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS, Part.QUERY_FFN_NEURONS})
"""The parts that are rankings of neurons, whose projections an answer holds."""


def changes_attention(intervention: Intervention) -> bool:
    """Whether it changes attention neurons."""
    return (
        any(isinstance(neuron, AttentionNeuron) for neuron in intervention.neurons)
        or bool(intervention.heads)
        or any(part.kind is LayerPartKind.ATTENTION for part in intervention.layers)
    )


SUMMED_PARTS = frozenset(
    {Part.LAYERS, Part.HEADS, Part.HEAD_POSITIONS, Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS}
)
"""The parts of which explained tokens taken together have sums."""

QUERY_PARTS = frozenset({Part.QUERY_LAYERS, Part.QUERY_FFN_NEURONS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one task puts into a batch."""

    length: int
    """Tokens of each of its sequences."""
    sequences: int = 1
    rows: int = 0
    """Positions that are read: those of explained tokens, and the last ones of sequences that are intervened in."""
    scored_rows: int = 0
    """Those of them whose base states are scored."""
    detailed_heads: int = 0
    """Heads whose positions are scored, of all explained tokens together."""
    scored_heads: int = 0
    """Heads that are scored, of all explained tokens together."""
    projected_tokens: int = 0
    """Vocabulary tokens in its answer, at most."""
    generating_tokens: int = 0
    """Tokens that are in memory at once while it generates."""
    generating_sequences: int = 0
    """Sequences that generate together."""
    searched_positions: int = 0
    """Source positions at which attention neurons are searched, of all explained tokens and ends together."""
    held_vectors: int = 0
    """Vectors of query sources, of either kind, that are there at once."""
    pattern_positions: int = 0
    """Source positions of which every head's attention weight is in the answer, of all explained tokens together."""
    rows_together: int = 0
    """Positions whose base states are scored at once, however many others are: those of tokens taken together."""
    kept_sequences: int = 0
    """Sequences whose coefficients at all positions are of use to query neurons."""
    reads_streams: bool = False
    """Whether the residual stream is read at other positions than those."""
    reads_sources: bool = False
    """Whether value vectors and attention weights are read of every source position by itself."""
    traced_tokens: int = 0
    """Tokens of a sequence that is frozen whole, with the gradients of what it computes."""
    rerun_tokens: int = 0
    """Tokens of reruns that are in memory at once."""


class Shaped:
    """What every task is in a batch: one sequence of one token of which nothing is read, if it does not say more."""

    __slots__ = ()

    @property
    def length(self) -> int:
        """Tokens of each of its sequences, generated ones included."""
        return 1

    @property
    def sequences(self) -> int:
        """How many there are."""
        return 1

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return self.length * self.sequences

    @property
    def rows(self) -> int:
        """Positions that are read."""
        return 0


@dataclass(frozen=True, slots=True)
class ExplainedToken:
    """The prediction made at `position`; `target` None means the model's own most probable token there."""

    position: int
    target: int | None = None
    spaced: int | None = None
    """The token of the target's text behind a space, which whoever wrote the text may have meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeTask(Shaped):
    """One attribution. With `generate` > 0 the explained tokens are the generated ones and `explained` is empty."""

    token_ids: tuple[int, ...]
    explained: tuple[ExplainedToken, ...] = ()
    generate: int = 0
    sampling: Sampling | None = None
    """How they are generated, with a seed; the most probable ones by itself."""
    stops: tuple[int, ...] = ()
    """What ends the generated text, beside what ends the model's texts anyway."""
    contrast: int | None = None
    options: AttributeOptions = field(default_factory=AttributeOptions)
    reproducible: bool = False
    """Whether each explained token is scored by itself, or with those alone that it is taken together with: products of
    several rows round otherwise than those of one."""
    contrast_answer: tuple[int, ...] = ()
    """What follows the prompt in a second sequence, whose log probability is subtracted from that of the first."""
    in_prompt: bool = False
    """Whether the explained tokens are the prompt's own, which stays as it is where fewer of them are explained."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first one that is explained."""
        return self.token_ids[: self.explained[0].position + 1] if self.explained else self.token_ids

    @property
    def length(self) -> int:
        """Those of the longest sequence: of the prompt and what follows it, generated or not."""
        contrasted = len(self.prompt) + len(self.contrast_answer) if self.contrast_answer else 0
        return max(len(self.token_ids) + self.generate, contrasted)

    @property
    def sequences(self) -> int:
        """One, and one for another answer."""
        return 2 if self.contrast_answer else 1

    @property
    def rows(self) -> int:
        """The explained tokens, those of another answer among them."""
        return len(self.explained) + self.generate + len(self.contrast_answer)

    @property
    def last_explained(self) -> int:
        """The last position at which a prediction has an explanation of its own."""
        return self.explained[-1].position if self.explained else len(self.token_ids) + self.generate - 2

    @property
    def explanations(self) -> int:
        """How many tokens have an explanation of their own in the answer."""
        return 0 if self.options.aggregate_only else len(self.explained) + self.generate

    @property
    def summed_parts(self) -> frozenset[Part]:
        """The parts of what the explained tokens do together."""
        return self.options.parts & SUMMED_PARTS if self.options.aggregate else frozenset()

    @property
    def sums_over_positions(self) -> bool:
        """Whether attention neurons are summed over source positions, too: two answers share none but the prompt."""
        return self.options.attention_neurons_over_positions or bool(self.contrast_answer)

    @property
    def summed_neurons(self) -> int:
        """The neurons of the explained tokens together."""
        return self.ends * len(RANKED_PARTS & self.summed_parts) * self.options.top_k + (
            len(self.options.neurons) if self.options.aggregate else 0
        )

    @property
    def ends(self) -> int:
        """How many rankings there are of each kind: increases, decreases or both."""
        return 2 if self.options.direction is Direction.BOTH else 1

    @property
    def named_neurons(self) -> int:
        """The neurons in each explanation: those that are ranked and those that are asked for."""
        options = self.options
        return self.ends * len(RANKED_PARTS & options.parts) * options.top_k + len(options.neurons)

    def listed_heads(self, heads: int) -> int:
        """Heads with positions in each explanation; both rankings may list the same ones."""
        asked = Part.HEAD_POSITIONS in self.options.parts
        return self.ends * min(self.options.head_top_k, heads) if asked else 0

    def detailed_heads(self, heads: int) -> int:
        """The heads in each explanation whose positions are scored, of a model that has so many."""
        return min(self.listed_heads(heads), heads)

    def cost(self, heads: int) -> Cost:
        """What it puts into a batch of a model that has so many heads."""
        options, own = self.options, self.explanations
        positions = 3 * self.listed_heads(heads) * min(options.top_k, self.length)
        projected = self.named_neurons * options.projection_top_k + positions * options.position_projection_top_k
        summed_positions = Part.ATTENTION_VALUE_NEURONS in self.summed_parts and not self.sums_over_positions
        detailed = min(heads, 2 * self.detailed_heads(heads)) if options.aggregate else self.detailed_heads(heads)
        return Cost(
            length=self.length,
            sequences=self.sequences,
            rows=self.rows,
            scored_rows=self.rows,
            detailed_heads=self.rows * detailed,
            scored_heads=self.rows * heads * bool(options.parts & {Part.HEADS, Part.HEAD_POSITIONS}),
            projected_tokens=2 * (own * projected + self.summed_neurons * options.projection_top_k),
            searched_positions=self.length * (own * self._position_searches + 2 * self.ends * summed_positions),
            held_vectors=2 * own * self.query_sources * bool(options.parts & QUERY_PARTS),
            pattern_positions=own * self.length * (Part.ATTENTION_PATTERNS in options.parts),
            rows_together=self.rows if options.aggregate else 0,
            kept_sequences=self.sequences * (Part.QUERY_FFN_NEURONS in options.parts),
            reads_streams=self.reads_streams,
            reads_sources=self.reads_sources,
        )

    @property
    def reads_streams(self) -> bool:
        """Whether explanations read the residual stream at source positions, each of which may be one of theirs."""
        options = self.options
        projected = Part.HEAD_POSITIONS in options.parts and options.position_projection_top_k > 0
        return self.explanations > 0 and (bool(options.parts & QUERY_PARTS) or projected)

    @property
    def reads_sources(self) -> bool:
        """Whether they read value vectors, or attention weights, at each source position."""
        parts, own = self.options.parts, self.explanations > 0
        summed_apart = Part.ATTENTION_VALUE_NEURONS in self.summed_parts and not self.sums_over_positions
        asked = Part.ATTENTION_PATTERNS in parts or bool(parts & QUERY_PARTS) or bool(self._position_searches)
        return Part.HEAD_POSITIONS in parts or summed_apart or (own and asked)

    @property
    def query_sources(self) -> int:
        """The value neurons that the query parts of each explanation start from, of either kind at most."""
        options = self.options
        if not options.query_from:
            return options.query_sources
        return sum(
            self.length if isinstance(each.neuron, AttentionNeuron) and each.position is None else 1
            for each in options.query_from
        )

    @property
    def _position_searches(self) -> int:
        """The ends of rankings of attention neurons by position, those that query parts start from among them."""
        options = self.options
        by_position = Part.ATTENTION_VALUE_NEURONS in options.parts and not options.attention_neurons_over_positions
        sources = bool(options.parts & QUERY_PARTS) and not options.query_from
        return max(self.ends * by_position, int(sources))


RERUN_TOKENS = 1024
"""Tokens of the passes that measure effects, together, but for a longer sequence."""


def generated_at_once(length: int) -> int:
    """How many sequences of a task generate together: by their length alone, so that their number changes nothing."""
    return 16 if 16 * length <= 4096 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneTask(Shaped):
    """Reruns of one prompt with neurons changed, each beside the others; `target` None means the model's own token."""

    token_ids: tuple[int, ...]
    sets: tuple[InterventionSet, ...]
    target: int | None = None
    generate: int = 0
    sampling: Sampling | None = None
    stops: tuple[int, ...] = ()
    freeze_scale: bool = False
    """Whether predictions after interventions are read with the final norm's scale of the plain pass."""

    @property
    def length(self) -> int:
        """Those of the prompt and the generated ones."""
        return len(self.token_ids) + self.generate

    @property
    def sequences(self) -> int:
        """The plain sequence and one for each set."""
        return 1 + len(self.sets)

    @property
    def rows(self) -> int:
        """The last position of each."""
        return self.sequences

    @property
    def generated_in_turn(self) -> int:
        """The tokens of the sets that are generated one after another, those of sets that generate together once."""
        return self.generate * ceil(len(self.sets) / generated_at_once(self.length))

    def cost(self, _heads: int) -> Cost:
        """What it puts into a batch: of each sequence the prediction after its last token is read, none is scored."""
        together = generated_at_once(self.length) if self.generate else 0
        return Cost(
            length=self.length,
            sequences=self.sequences,
            rows=self.rows,
            generating_tokens=self.length * together,
            generating_sequences=together,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectTask(Shaped):
    """One projection of neurons into the vocabulary."""

    neurons: tuple[Neuron, ...]
    side: Side = Side.SUBVALUE
    through: Head | None = None
    top_k: int = 10
    subkey: Subkey = Subkey.UP

    def cost(self, _heads: int) -> Cost:
        """What it puts into a batch: nothing goes through the model."""
        return Cost(length=self.length, projected_tokens=2 * len(self.neurons) * self.top_k)


def reruns_at_once(length: int) -> int:
    """How many sequences that measure effects run together."""
    return max(1, RERUN_TOKENS // length)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTask(Shaped):
    """The graph of one prediction, or of several together; a target that is None means the model's own token there."""

    token_ids: tuple[int, ...]
    explained: tuple[ExplainedToken, ...]
    contrast: int | None = None
    options: TraceOptions = field(default_factory=TraceOptions)
    in_prompt: bool = False
    """Whether the explained tokens are the prompt's own, which stays as it is where fewer of them are explained."""

    @property
    def length(self) -> int:
        """Those of the prompt, and of a completion that is explained."""
        return len(self.token_ids)

    @property
    def rows(self) -> int:
        """The explained tokens."""
        return len(self.explained)

    @property
    def screened(self) -> int:
        """FFN neurons, each at its position, that pass the screening, where there are as many."""
        options = self.options
        asked = SCREENED_PER_NODE * options.nodes if options.screened is None else options.screened
        return max(asked, options.nodes) if options.measure else options.nodes

    @property
    def reruns(self) -> int:
        """The passes that measure effects, each of one sequence."""
        return self.screened if self.options.measure else 0

    def cost(self, _heads: int) -> Cost:
        """What it puts into a batch. It shares no pass with others."""
        return Cost(
            length=self.length,
            projected_tokens=2 * self.options.nodes * self.options.projection_top_k,
            traced_tokens=self.length,
            rerun_tokens=self.length * min(self.reruns, reruns_at_once(self.length)),
        )


Task = AttributeTask | InterveneTask | ProjectTask | TraceTask
