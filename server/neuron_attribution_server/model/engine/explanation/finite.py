"""Activations beyond what the model's numbers can hold, which no score may come of."""

from __future__ import annotations

from collections.abc import Sequence

from neuron_attribution.errors import FailedPreconditionError, InvalidArgumentError
from torch import Tensor

from neuron_attribution_server.model.attribution.unembedding import Unembedding
from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask, TraceTask

OVERFLOW = "OVERFLOW"
FARTHEST = 4
"""How many times larger or smaller than its own a pass's scale of the final norm may be given."""


def are_finite(unembedding: Unembedding, finals: Tensor) -> list[bool]:
    """Whether each final residual [E, d] can be read.

    Of one whose squares overflow, the scale is infinite: the norm makes zeros of it, and a finite prediction.
    """
    finite: list[bool] = unembedding.scale(finals).isfinite().tolist()
    return finite


def check_scales(task: AttributeTask | InterveneTask, own: Tensor) -> None:
    """Refuse scales of the final norm that are far from a task's own [E]: no score would be of use.

    Raises InvalidArgumentError.
    """
    scales = task.options.final_norm_scales if isinstance(task, AttributeTask) else ()
    if not scales:
        return
    for number, (scale, mine) in enumerate(zip(scales, own.tolist(), strict=False)):
        if not mine / FARTHEST <= scale <= mine * FARTHEST:
            raise InvalidArgumentError.of(
                f"final_norm_scales[{number}]",
                f"{scale:g} is not within a factor of {FARTHEST} of the pass's own scale, {mine:g}; give the "
                "final_norm_scale of an explanation of the same prompt",
                reason="OUT_OF_RANGE",
            )


def check_finite(finite: Sequence[bool], task: AttributeTask | InterveneTask | TraceTask) -> None:
    """Refuse a task one of whose rows cannot be read. The first row of interventions is that of the plain prompt.

    Raises InvalidArgumentError where interventions are to blame, and FailedPreconditionError where the prompt is
    enough.
    """
    if all(finite):
        return
    plain_overflows = not (finite[0] if isinstance(task, InterveneTask) else getattr(task.options, "interventions", ()))
    if plain_overflows:
        raise FailedPreconditionError(
            "this prompt makes the model's activations overflow; serve the model with --dtype float32 or bfloat16",
            reason=OVERFLOW,
        )
    field = f"sets[{finite.index(False) - 1}]" if isinstance(task, InterveneTask) else "interventions"
    raise InvalidArgumentError.of(
        field, "makes the model's activations overflow; use smaller factors or values", reason=OVERFLOW
    )
