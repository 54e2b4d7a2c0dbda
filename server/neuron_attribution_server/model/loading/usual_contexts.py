"""The contexts in which every FFN neuron's coefficient is looked at when a model is loaded: a small text of our own.

Its sentences are about different things, in different tones, so that a neuron which is strong in most of them is strong
whatever is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.subvalues import stack_layers
from neuron_attribution_server.model.capture.capture import capture
from neuron_attribution_server.model.capture.captured import CapturedStates, ExplainedRows
from neuron_attribution_server.model.engine.explanation.activity import Activity

SENTENCES = (
    "The old harbour was quiet, and two boats came home before the rain.",
    "She multiplied seven by nine and wrote the result under the line.",
    "Please send me the invoice for last month by Friday afternoon.",
    "In spring the river carries snow water from the mountains to the lake.",
    "def area(width, height): return width * height",
    "Nobody had told him that the museum closes early on Mondays.",
    "The court decided that the contract had never been valid.",
    "Cut the onions finely, then fry them slowly in a little butter.",
    "Our team lost the final by a single point after extra time.",
    "Light needs about eight minutes to travel from the sun to the earth.",
    "Why would anyone paint a door green, she asked, laughing.",
    "The minister resigned, and the newspapers wrote about nothing else.",
    "Patients with a fever should drink enough water and rest.",
    "First the violins play alone; the drums join them much later.",
    "Madrid is in Spain, Oslo is in Norway, and Lima is in Peru.",
    "If the engine does not start, check the battery and the fuel.",
)
MOST_TOKENS = 12
"""Of a sentence: its first ones."""
MOST_BYTES = 1 << 28
"""What the coefficients may take: of a model of millions of neurons fewer sentences are looked at, or none."""
_HALF_BYTES = torch.float16.itemsize
_HALF = torch.finfo(torch.float16).max


def _tokens(token_ids: Callable[[str], Sequence[int]], sentence: str) -> tuple[int, ...]:
    """The tokens of a sentence; none where a tokenizer has no token for some of its letters."""
    try:
        return tuple(token_ids(sentence))
    except Exception:  # the tokenizers library raises nothing narrower
        return ()


def usual_activity(view: ModelView, token_ids: Callable[[str], Sequence[int]]) -> Activity | None:
    """Every FFN neuron's coefficients at the sentences' positions, each first one apart; None without others.

    The first token of a text is like no other: attention rests on it, and some neurons are only strong there.
    """
    most = min(MOST_TOKENS, view.maximum_tokens)
    sequences = [_tokens(token_ids, sentence)[:most] for sentence in SENTENCES]
    wanted = [ids for ids in sequences if len(ids) > 1 and max(ids) < view.sizes.vocabulary]
    neurons = view.sizes.layers * max(len(layer.ffn_subvalues) for layer in view.layers)
    wanted = wanted[: MOST_BYTES // (_HALF_BYTES * MOST_TOKENS * neurons)]
    if not wanted:
        return None
    alone = view.depends_on_length or len(wanted) < len(SENTENCES)
    passes = [[ids] for ids in wanted] if alone else [wanted]
    found = [_coefficients(view, each) for each in passes]
    others, first = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Activity(view, others, first)


def _coefficients(view: ModelView, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """At positions behind the first ones, [contexts, L, N], and at the first ones, [sequences, L, N]."""
    rows = ExplainedRows.from_counts([range(len(ids)) for ids in sequences], view.device)
    captured = capture(view, sequences, rows)
    layers = stack_layers([_layer(captured, number) for number in range(view.sizes.layers)], 1)
    return layers[rows.positions > 0], layers[rows.positions == 0]


def _layer(captured: CapturedStates, number: int) -> Tensor:
    """One layer's, over the scale of the norm that its write passes through, where there is one."""
    found = captured.coefficients[number].float()
    if captured.ffn_scales:
        found = found / captured.rows.of(captured.ffn_scales[number]).float()[:, None]
    return found.clamp(-_HALF, _HALF).half()
