"""Generation with the served model, as it is or with interventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from neuron_attribution.generation import FinishReason, Generation, Sampling
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checkpoint
from neuron_attribution_server.model.capture.edits import Edits, Placed
from neuron_attribution_server.model.engine.kept_states import states_set_aside
from neuron_attribution_server.model.engine.sampling import processors
from neuron_attribution_server.tasks.tasks import generated_at_once


@dataclass(frozen=True, slots=True)
class Continuation:
    """Generated tokens, and how that ended; None where none were asked for."""

    tokens: tuple[int, ...] = ()
    generation: Generation | None = None


def make_greedy(model: PreTrainedModel) -> None:
    """Forget how a checkpoint wants its text sampled, penalties above all; only where a text ends is kept."""
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )


def generate(
    view: ModelView,
    token_ids: Sequence[int],
    count: int,
    placed: Placed | None = None,
    sampling: Sampling | None = None,
    stops: Sequence[int] = (),
) -> Continuation:
    """`count` tokens one after another, fewer where the text ends: the most probable ones, or drawn ones.

    It ends where the model ends its texts, and behind any of `stops`.
    """
    return _generate(view, token_ids, count, [placed or Placed()], sampling, stops)[0]


def generate_several(
    view: ModelView,
    token_ids: Sequence[int],
    count: int,
    sequences: Sequence[Placed],
    sampling: Sampling | None = None,
    stops: Sequence[int] = (),
) -> list[Continuation]:
    """The same for several sequences of interventions, always so many at once that none depends on how many there are.

    Matrix products of a handful of rows round otherwise than larger ones. All are drawn with the same luck.
    """
    together = generated_at_once(len(token_ids) + count)
    found = []
    for start in range(0, len(sequences), together):
        some = sequences[start : start + together]
        padding = [Placed()] * (together - len(some))
        found += _generate(view, token_ids, count, [*some, *padding], sampling, stops)[: len(some)]
    return found


def _generate(
    view: ModelView,
    token_ids: Sequence[int],
    count: int,
    sequences: Sequence[Placed],
    sampling: Sampling | None,
    stops: Sequence[int],
) -> list[Continuation]:
    prompts = torch.tensor([token_ids] * len(sequences), device=view.device)
    own = view.model.generation_config.eos_token_id
    ends = [end for end in (*(own if isinstance(own, list) else [own]), *stops) if end is not None]
    edits = Edits(view, sequences)
    with edits.made(), states_set_aside(view):
        generated = view.model.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            do_sample=False,  # what is drawn is drawn by the processors, with the call's own seed
            num_beams=1,
            use_cache=True,  # else every step would begin at position 0 again
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else None,
            logits_processor=processors(sampling, len(token_ids)),
            stopping_criteria=StoppingCriteriaList([_Checkpoint(view, edits)]),
        )
    seed = sampling.seed if sampling is not None else None
    return [_until_end(row, ends, seed) for row in generated[:, len(token_ids) :].tolist()]


class _Checkpoint(StoppingCriteria):
    """Stops nothing by itself: it looks up after each token, with interventions and kept states out of the way."""

    def __init__(self, view: ModelView, edits: Edits) -> None:
        self._view = view
        self._edits = edits

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """No sequence is done."""
        with self._edits.paused(), states_set_aside(self._view):
            checkpoint()
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)


def _until_end(tokens: list[int], ends: Sequence[int], seed: int | None) -> Continuation:
    """The tokens up to the first that ends a text: what follows it only fills the batch."""
    last = next((place for place, token in enumerate(tokens) if token in ends), None)
    if last is None:
        return Continuation(tuple(tokens), Generation(FinishReason.LENGTH, seed))
    return Continuation(tuple(tokens[: last + 1]), Generation(FinishReason.STOP, seed))
