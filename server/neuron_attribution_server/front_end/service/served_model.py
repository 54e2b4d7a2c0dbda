"""The loaded model as the front end sees it: what requests become before the queue, and answers after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

from neuron_attribution import convert
from neuron_attribution.results import InterveneResult, Limits, ModelInfo, Timings
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

from neuron_attribution_server.front_end.conversations.answer_ends import AnswerEnds
from neuron_attribution_server.front_end.conversations.chat import Chat
from neuron_attribution_server.front_end.conversations.origins import Origins
from neuron_attribution_server.front_end.scheduling.request_queue import Delivery
from neuron_attribution_server.front_end.service.task_sizes import answer_bytes
from neuron_attribution_server.front_end.service.token_reader import TokenReader
from neuron_attribution_server.front_end.service.validate import RequestValidator
from neuron_attribution_server.tasks.answers import InterveneOutcome, PackedAttribution, PackedTrace
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.tasks import AttributeTask, InterveneTask, ProjectTask, Task, TraceTask
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer
from neuron_attribution_server.tasks.work_prices import WorkPredictor


@dataclass(frozen=True, slots=True)
class PreparedAttribution:
    """An attribution ready for the queue, and the seconds that reading and tokenizing it took."""

    task: AttributeTask
    tokenization: float
    origins: Origins | None = None
    """Where the prompt's tokens come from, if it is a conversation."""


@dataclass(frozen=True, slots=True)
class PreparedIntervention:
    """Interventions ready for the queue, and the seconds that reading and tokenizing them took."""

    task: InterveneTask
    tokenization: float
    origins: Origins | None = None
    """Where the prompt's tokens come from, if it is a conversation."""


@dataclass(frozen=True, slots=True)
class PreparedTrace:
    """A trace ready for the queue, and the seconds that reading and tokenizing it took."""

    task: TraceTask
    tokenization: float
    origins: Origins | None = None
    """Where the prompt's tokens come from, if it is a conversation."""


class ServedModel:
    """Reads requests and writes answers for one model. Every method may take a while; none needs the event loop."""

    def __init__(self, facts: ModelFacts, limits: Limits, ranges_ready: Callable[[], float] = lambda: 0.0) -> None:
        self.identity = facts.identity
        self._ranges_ready = ranges_ready
        self.predictor = WorkPredictor(facts.work, facts.sizes)
        """What requests will take, by their kinds; it learns from those that have run."""
        self._sizes = facts.sizes
        self._tokenizer = ExactTokenizer(facts.tokenizer)
        self._written_tokens: dict[int, bytes] = {}
        characters = limits.tokens * self._tokenizer.longest_token
        self._chat = Chat(facts.chat, messages=limits.tokens, characters=characters)
        ends = AnswerEnds(self._chat, self._tokenizer)
        reader = TokenReader(self._tokenizer, limits, facts.sizes.vocabulary, self._chat, ends)
        self._validator = RequestValidator(facts, limits, reader, self.predictor)
        self._info = ModelInfo(
            model=facts.identity,
            family=facts.family,
            device=facts.device,
            sizes=facts.sizes,
            limits=limits,
            supported_parts=facts.supported_parts,
            exactness=facts.exactness,
            invariants=facts.invariants,
            tokenizer=replace(
                self._tokenizer.facts,
                chat_template=bool(facts.chat.templates),
                chat_templates=self._chat.names,
            ),
            version=version("neuron-attribution"),
            activity_contexts=facts.activity_contexts,
            layers=facts.layers,
            untraceable=facts.untraceable,
        )

    def prepare(self) -> None:
        """Have ready what the first requests would wait for."""
        self._chat.prepare()

    def describe(self, message: messages.GetModelRequest) -> messages.GetModelResponse:
        """Answer what is served."""
        self._validator.check_model(message.model)
        return convert.model_info_to_proto(replace(self._info, ranges_ready=self._ranges_ready()))

    def tokenize(self, message: messages.TokenizeRequest) -> messages.TokenizeResponse:
        """Answer what tokens a text or a conversation becomes."""
        self._validator.check_sizes(message)
        return convert.tokenize_result_to_proto(self._validator.tokenize(convert.tokenize_request_from_proto(message)))

    def prepare_attribution(
        self, message: messages.AttributeRequest, *, reproducible: bool = False
    ) -> PreparedAttribution:
        """Read, check and tokenize a request for an attribution."""
        started = time.perf_counter()
        self._validator.check_counts(message)
        task, origins = self._validator.attribute(convert.attribute_request_from_proto(message))
        return PreparedAttribution(replace(task, reproducible=reproducible), time.perf_counter() - started, origins)

    def prepare_intervention(self, message: messages.InterveneRequest) -> PreparedIntervention:
        """Read, check and tokenize a request for interventions."""
        started = time.perf_counter()
        self._validator.check_set_counts(message)
        task, origins = self._validator.intervene(convert.intervene_request_from_proto(message))
        return PreparedIntervention(task, time.perf_counter() - started, origins)

    def prepare_trace(self, message: messages.TraceRequest) -> PreparedTrace:
        """Read, check and tokenize a request for a graph."""
        started = time.perf_counter()
        self._validator.check_conversation(message)
        task, origins = self._validator.trace(convert.trace_request_from_proto(message))
        return PreparedTrace(task, time.perf_counter() - started, origins)

    def prepare_projection(self, message: messages.ProjectNeuronRequest) -> ProjectTask:
        """Read and check a request for projections."""
        self._validator.check_counts(message)
        return self._validator.project(convert.project_neuron_request_from_proto(message))

    def answer_bytes(self, task: Task) -> int:
        """About how many bytes the answer to a task will have, from above."""
        return answer_bytes(task, self._sizes)

    def finish_attribution(
        self, answer: PackedAttribution, timings: Timings, origins: Origins | None = None
    ) -> tuple[bytes, bytes]:
        """Write the answer to an attribution: as it left the worker, and what completes it, serialized."""
        return convert.completed_attribution(
            answer.response,
            map(self._written_token, answer.token_ids),
            timings,
            () if origins is None else origins.of(len(answer.token_ids)),
        )

    def finish_trace(self, answer: PackedTrace, timings: Timings, origins: Origins | None = None) -> bytes:
        """Write the answer to a trace, serialized: as it left the worker, and what completes it."""
        tokens = map(self._tokenizer.token, answer.token_ids)
        said = () if origins is None else origins.of(len(answer.token_ids))
        return convert.completed_trace(answer.response, tokens, timings, said)

    def close(self) -> None:
        """End the processes that render conversations."""
        self._chat.renderer.close()

    def finish_intervention(self, prepared: PreparedIntervention, delivery: Delivery) -> messages.InterveneResponse:
        """Write the answer to interventions."""
        outcome = delivery.outcome
        assert isinstance(outcome, InterveneOutcome)
        timings = Timings(
            queue=delivery.queue,
            tokenization=prepared.tokenization,
            forward=outcome.forward,
            scoring=outcome.scoring,
            batch_requests=outcome.batch_requests,
            batch_tokens=outcome.batch_tokens,
            predicted=delivery.predicted,
        )
        tokens = tuple(map(self._tokenizer.token, prepared.task.token_ids))
        origins = () if prepared.origins is None else prepared.origins.prompt
        return convert.intervene_result_to_proto(
            InterveneResult(self.identity, tokens, outcome.before, outcome.results, timings, origins)
        )

    def _written_token(self, id: int) -> bytes:
        written = self._written_tokens.get(id)
        if written is None:
            written = self._written_tokens[id] = convert.serialized_token(self._tokenizer.token(id))
        return written
