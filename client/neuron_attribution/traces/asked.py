"""What a graph is asked for, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

from neuron_attribution.conversations.messages import Prompt
from neuron_attribution.requests import Span, Subkey

DEFAULT_NODES = 100
SCREENED_PER_NODE = 4
"""How many neurons are measured for each that is kept, unless the request says."""
MOST_EDGES = 20
"""Incoming edges that a node keeps at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """What a graph holds."""

    nodes: int = DEFAULT_NODES
    """FFN neurons, each at its position, that are kept: those of the largest effect."""
    edge_share: float = 0.8
    """Each node keeps its largest incoming edges until they are this share of the sum of all their magnitudes."""
    subkey: Subkey = Subkey.UP
    """Which vector of a gated neuron is its key, up or gate; the factor beside it is frozen."""
    measure: bool = True
    """Whether effects are measured, by zeroing each screened neuron at its position."""
    heads: bool = False
    """Whether edges from earlier positions name the head that carries most of them."""
    screened: int | None = None
    """Neurons that pass the screening and are measured; None means SCREENED_PER_NODE for each that is kept."""
    projection_top_k: int = 10
    """Vocabulary tokens, top and bottom, for each neuron."""
    leave_out_always_on: bool = False
    """Whether neurons are left out that are on whatever is asked."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A request for a graph. At most one of `target`, `completion` and `span` is given."""

    prompt: Prompt
    """Text, token ids used exactly as given, or a conversation."""
    _: KW_ONLY
    target: str | int | None = None
    """The next token to follow back: its exact text, leading space and all, or its id. None: the model's own."""
    completion: str | tuple[int, ...] | None = None
    """A continuation, text or token ids, all tokens of which are followed back together."""
    span: Span | None = None
    """The prompt's own tokens to follow back together, each by the prediction before it."""
    contrast: str | int | None = None
    """Follow back the logit's difference to this token's, at each explained position: its exact text or its id."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer's special tokens are added to a text. None: its own default."""
    options: TraceOptions = field(default_factory=TraceOptions)
    """What the graph holds; the client's methods take its fields as keywords of their own."""
    model: str = ""
    """The model's name; empty for the served one."""
