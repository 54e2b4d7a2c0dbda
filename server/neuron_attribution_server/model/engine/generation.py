"""Greedy generation with the served model, as it is or with interventions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from neuron_attribution_server.model.architectures.model_view import ModelView
from neuron_attribution_server.model.attribution.checkpoints import checkpoint
from neuron_attribution_server.model.capture.edits import Edits, Placed
from neuron_attribution_server.model.engine.kept_states import states_set_aside
from neuron_attribution_server.tasks.tasks import generated_at_once


def make_greedy(model: PreTrainedModel) -> None:
    """Forget how a checkpoint wants its text sampled, penalties above all; only where a text ends is kept."""
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )


def generate(view: ModelView, token_ids: Sequence[int], count: int, placed: Placed | None = None) -> tuple[int, ...]:
    """The `count` most probable tokens one after another; fewer where the model ends its text."""
    return _generate(view, token_ids, count, [placed or Placed()])[0]


def generate_several(
    view: ModelView, token_ids: Sequence[int], count: int, sequences: Sequence[Placed]
) -> list[tuple[int, ...]]:
    """The same for several sequences of interventions, always so many at once that none depends on how many there are.

    Matrix products of a handful of rows round otherwise than larger ones.
    """
    together = generated_at_once(len(token_ids) + count)
    found = []
    for start in range(0, len(sequences), together):
        some = sequences[start : start + together]
        found += _generate(view, token_ids, count, [*some, *[Placed()] * (together - len(some))])[: len(some)]
    return found


def _generate(
    view: ModelView, token_ids: Sequence[int], count: int, sequences: Sequence[Placed]
) -> list[tuple[int, ...]]:
    prompts = torch.tensor([token_ids] * len(sequences), device=view.device)
    ends = view.model.generation_config.eos_token_id
    ending = ends if isinstance(ends, list) else [ends]
    edits = Edits(view, sequences)
    with edits.made(), states_set_aside(view):
        generated = view.model.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            do_sample=False,
            num_beams=1,
            use_cache=True,  # else every step would begin at position 0 again
            pad_token_id=ending[0],
            stopping_criteria=StoppingCriteriaList([_Checkpoint(view, edits)]),
        )
    return [_until_end(row, ending) for row in generated[:, len(token_ids) :].tolist()]


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


def _until_end(tokens: list[int], ends: Sequence[int | None]) -> tuple[int, ...]:
    """The tokens up to the first that ends a text: what follows it only fills the batch."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[: last + 1])
