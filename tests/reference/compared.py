"""One model in the engine and in the oracle."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_attribution.requests import AttributeOptions
from neuron_attribution.results import Explanation
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import engine_from
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from transformers import PreTrainedModel

from reference.compare_explanations import assert_explanation
from reference.dissection import Dissection
from reference.oracle import Oracle
from reference.tiny_models import TINY_MODELS
from reference.weights import Weights, read_weights


@dataclass(frozen=True)
class Compared:
    """A model and both ways to explain it."""

    name: str
    model: PreTrainedModel
    weights: Weights
    engine: Engine
    dissection: Dissection | None = None

    def explain(self, task: AttributeTask) -> tuple[Explanation, ...]:
        """The engine's explanations; a refusal is raised."""
        (outcome,) = self.engine.run([task])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome.explanations

    def explain_last(self, token_ids: Sequence[int], target: int | None = None, **facts: object) -> Explanation:
        """The engine's explanation of the prediction after the last token."""
        explained = (ExplainedToken(len(token_ids) - 1, target),)
        (explanation,) = self.explain(AttributeTask(token_ids=tuple(token_ids), explained=explained, **facts))
        return explanation

    def check(
        self,
        token_ids: Sequence[int],
        target: int | None = None,
        contrast: int | None = None,
        options: AttributeOptions | None = None,
        *,
        allow_cancellation: bool = True,
    ) -> Explanation:
        """The engine's explanation of the prediction after the last token, after comparing it with the oracle's."""
        options = options or AttributeOptions()
        got = self.explain_last(token_ids, target, contrast=contrast, options=options)
        want = self.oracle(token_ids).explain(None, target, contrast, options.include_final_norm_bias)
        assert_explanation(got, want, options, allow_cancellation=allow_cancellation)
        return got

    def oracle(self, token_ids: Sequence[int]) -> Oracle:
        """The oracle's pass over `token_ids`."""
        states = self.dissection and self.dissection.states(token_ids)
        return Oracle(self.model, token_ids, self.weights, states)


def compare(model: PreTrainedModel, name: str, tokenizer_json: str | None = None) -> Compared:
    """`model` in both; the oracle's weights are read first."""
    weights = read_weights(model)
    return Compared(name, model, weights, engine_from(model, tokenizer_json, name))


def compare_dissected(model: PreTrainedModel, name: str) -> Compared:
    """`model` in the engine, and taken apart."""
    dissection = Dissection(model)
    return Compared(name, model, dissection.weights, engine_from(model, None, name), dissection)


@functools.cache
def compare_tiny(name: str) -> Compared:
    """One of the tiny models, made once."""
    return compare(TINY_MODELS[name](), name)
