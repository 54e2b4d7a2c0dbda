"""Hypothesis strategies for every dataclass that travels, built from its annotations: a new field is tested at once."""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from neuron_attribution.conversations.messages import Conversation, Message
from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import Head
from neuron_attribution.requests import (
    ALL_PARTS,
    Aggregate,
    AttributeOptions,
    AttributeRequest,
    InterveneRequest,
    Intervention,
    Part,
    ProjectNeuronRequest,
    ScoringMethod,
    Span,
    Subkey,
)
from neuron_attribution.traces import TraceOptions, TraceRequest

COUNTS = st.integers(1, 2**32 - 1)
TEXTS = st.text(min_size=1, max_size=8)
IDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(tuple)
SECONDS = st.integers(0, 10**13).map(lambda nanoseconds: nanoseconds / 1e9)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=4), JSON, max_size=3)
SUMMED_PARTS = (Part.LAYERS, Part.HEADS, Part.HEAD_POSITIONS, Part.FFN_VALUE_NEURONS, Part.ATTENTION_VALUE_NEURONS)

SCALARS = {
    bool: st.booleans(),
    int: st.integers(0, 2**32 - 1),
    float: st.floats(width=32, allow_nan=False),
    str: st.text(max_size=8),
    type(None): st.none(),
}
FIELDS = {
    "head_scores": st.none() | arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=4)),
    **dict.fromkeys(("factor", "value"), st.floats(-3e38, 3e38)),
    **dict.fromkeys(
        ("queue", "tokenization", "forward", "scoring", "predicted", "maximum_wait", "maximum_age"), SECONDS
    ),
    **dict.fromkeys(("request_seconds", "queued_seconds", "batch_seconds", "transfer_timeout"), SECONDS),
}


def instances(kind: type, **overrides: st.SearchStrategy) -> st.SearchStrategy:
    """Instances of a dataclass."""
    hints, names = get_type_hints(kind), [field.name for field in fields(kind) if field.name not in overrides]
    strategies = {name: _field(name, hints[name]) for name in names}
    return st.builds(kind, **strategies, **overrides)


def attribute_requests() -> st.SearchStrategy:
    """Requests the service accepts: at most one thing explained, special tokens with text only."""
    options = instances(
        AttributeOptions,
        top_k=COUNTS,
        query_sources=COUNTS,
        head_top_k=COUNTS,
        parts=st.frozensets(st.sampled_from(Part), min_size=1),
        interventions=st.just(()) | interventions(),
        aggregate=st.none(),
        aggregate_only=st.just(False),
    )
    together = instances(
        AttributeOptions,
        top_k=COUNTS,
        query_sources=COUNTS,
        head_top_k=COUNTS,
        parts=st.just(ALL_PARTS) | st.frozensets(st.sampled_from(SUMMED_PARTS), min_size=1),
        interventions=st.just(()),
        scoring_method=st.just(ScoringMethod.LOG_PROBABILITY_INCREASE),
        exhaustive=st.just(False),
        aggregate=st.sampled_from(Aggregate),
    )
    token = st.none() | TEXTS | SCALARS[int]
    common = {"contrast": token, "options": options, "target": st.none(), "completion": st.none()}
    common |= {"generate": st.none(), "sampling": st.none(), "span": st.none(), "contrast_completion": st.none()}
    explained: list[Mapping[str, Any]] = [
        *({"target": token}, {"completion": TEXTS | IDS}, {"span": spans()}),
        {"generate": COUNTS, "sampling": st.none() | samplings()},
        {"completion": TEXTS | IDS, "options": together},
        {"completion": IDS, "contrast_completion": TEXTS | IDS, "contrast": st.none(), "options": together},
    ]
    prompts = [{"prompt": TEXTS}, {"prompt": IDS | conversations(), "add_special_tokens": st.none()}]
    return st.one_of(
        instances(AttributeRequest, **{**common, **explanation, **prompt})
        for explanation in explained
        for prompt in prompts
    )


def samplings() -> st.SearchStrategy:
    """Ways to draw tokens that the service accepts."""
    temperatures, probabilities = st.floats(0.01, 100), st.floats(0, 1, exclude_min=True)
    seeds = st.none() | st.integers(0, 2**64 - 1)
    return instances(Sampling, temperature=temperatures, top_p=probabilities, seed=seeds)


def conversations() -> st.SearchStrategy:
    """Conversations the service accepts."""
    message = st.builds(Message, role=TEXTS, content=st.none() | st.text(max_size=8), fields=OBJECTS)
    return st.builds(
        Conversation,
        messages=st.lists(message, min_size=1, max_size=3).map(tuple),
        add_generation_prompt=st.none() | st.booleans(),
        arguments=OBJECTS,
        template=st.text(max_size=4),
        tools=st.lists(OBJECTS, max_size=2).map(tuple),
    )


def spans() -> st.SearchStrategy:
    """Positions of a prompt, without the first one."""
    return st.builds(lambda start, count: Span(start, start + count), st.integers(1, 2**31), st.integers(1, 2**31 - 1))


def interventions() -> st.SearchStrategy:
    """Sets of interventions the service accepts: each names something."""
    some = st.lists(instances(Head), min_size=1, max_size=2).map(tuple)
    return st.lists(instances(Intervention, heads=some), min_size=1, max_size=2).map(tuple)


def intervene_requests() -> st.SearchStrategy:
    """Requests the service accepts: special tokens with text only."""
    common = {"sets": st.lists(interventions(), min_size=1, max_size=2).map(tuple)}
    common |= {"target": st.none() | TEXTS | SCALARS[int]}
    plain, drawn = ({"sampling": st.none()}, {"generate": COUNTS, "sampling": samplings()})
    return st.one_of(
        instances(InterveneRequest, **common, **prompt, **generation)
        for prompt in ({"prompt": TEXTS}, {"prompt": IDS | conversations(), "add_special_tokens": st.none()})
        for generation in (plain, drawn)
    )


def trace_requests() -> st.SearchStrategy:
    """Requests the service accepts: at most one thing explained, at least as many neurons screened as kept."""
    shares = st.floats(0, 1, exclude_min=True)
    subkeys = st.sampled_from([Subkey.UP, Subkey.GATE])
    unscreened = instances(TraceOptions, nodes=COUNTS, edge_share=shares, subkey=subkeys, screened=st.none())
    numbers = {"nodes": st.integers(1, 1000), "screened": st.integers(1000, 2**32 - 1)}
    screened = instances(TraceOptions, **numbers, edge_share=shares, subkey=subkeys, measure=st.just(True))
    token = st.none() | TEXTS | SCALARS[int]
    common = {"options": unscreened | screened, "contrast": token}
    common |= {"target": st.none(), "completion": st.none(), "span": st.none()}
    return st.one_of(
        instances(TraceRequest, **{**common, **explanation, **prompt})
        for explanation in ({"target": token}, {"completion": TEXTS | IDS}, {"span": spans()})
        for prompt in ({"prompt": TEXTS}, {"prompt": IDS | conversations(), "add_special_tokens": st.none()})
    )


def project_neuron_requests() -> st.SearchStrategy:
    """Requests the service accepts: FFN neurons only where they are read through a head."""
    requests = instances(ProjectNeuronRequest, top_k=COUNTS, subkey=st.sampled_from([Subkey.UP, Subkey.GATE]))
    return requests.filter(lambda request: request.neurons and request.through is None)


def assert_same(first: Any, second: Any) -> None:
    """Equality that looks into arrays."""
    if is_dataclass(first):
        assert type(first) is type(second)
        for field in fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name))
    elif isinstance(first, tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second, strict=True)
    else:
        assert first == second


def _field(name: str, hint: Any) -> st.SearchStrategy:
    return FIELDS[name] if name in FIELDS else _type(hint)


def _type(hint: Any) -> st.SearchStrategy:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in SCALARS:
        return SCALARS[hint]
    if origin in (Union, types.UnionType):
        return st.one_of(*map(_type, arguments))
    if origin is tuple:
        return st.lists(_type(arguments[0]), max_size=2).map(tuple)
    if origin is np.ndarray:
        return arrays(np.float32, st.integers(0, 4))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    return instances(hint)
