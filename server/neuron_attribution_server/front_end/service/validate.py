"""Requests become tasks: tokens, and every check that needs the model. Errors name the field and the remedy.

What can be checked without the model (empty, unset, contradictory fields) is refused while messages are read.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from neuron_attribution.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from neuron_attribution.generation import Sampling
from neuron_attribution.requests import (
    ALL_PARTS,
    AttributeOptions,
    AttributeRequest,
    InterveneRequest,
    LayerPartKind,
    Part,
    ProjectNeuronRequest,
    ScoringMethod,
    Subkey,
    TokenizeRequest,
)
from neuron_attribution.results import Limits, TokenizeResult
from neuron_attribution.traces import SCREENED_PER_NODE, TraceOptions, TraceRequest
from neuron_attribution.v1 import neuron_attribution_pb2 as messages

from neuron_attribution_server.front_end.conversations.origins import Origins
from neuron_attribution_server.front_end.service.task_sizes import pattern_bytes
from neuron_attribution_server.front_end.service.token_reader import TokenReader
from neuron_attribution_server.front_end.service.too_long import check_seconds
from neuron_attribution_server.tasks.checks import (
    check_at_least_one,
    check_at_most,
    check_attributable,
    check_head,
    check_interventions,
    check_neurons,
    check_query_sources,
    quotable,
)
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.tasks import (
    SUMMED_PARTS,
    AttributeTask,
    ExplainedToken,
    InterveneTask,
    ProjectTask,
    Task,
    TraceTask,
)
from neuron_attribution_server.tasks.work_prices import WorkPredictor

_SEED_BITS = 32
LEAST_TOKEN_BYTES = 12
"""A projected token takes so much of an answer, at least: its id, its text, its score, and their tags."""


@dataclass(frozen=True)
class RequestValidator:
    """Checks requests against one model and the limits, and makes them tasks."""

    facts: ModelFacts
    limits: Limits
    reader: TokenReader
    predictor: WorkPredictor

    def check_model(self, name: str) -> None:
        """Refuse another model's name."""
        served = self.facts.identity.name
        if name not in ("", served):
            name = quotable(name)
            raise NotFoundError(f"model {name!r} is not served here; {served!r} is: name it or leave the name out")

    def check_counts(self, message: messages.AttributeRequest | messages.ProjectNeuronRequest) -> None:
        """Refuse what is too long before time is spent on reading it."""
        check_at_most(len(message.neurons), self.limits.neurons, "neurons", "neurons")
        if isinstance(message, messages.AttributeRequest):
            self.reader.chat.check_sizes(message.prompt.conversation, "prompt.conversation")
            check_at_most(len(message.parts), len(Part), "parts", "parts")
            check_at_most(len(message.query_from), self.limits.top_k, "query_from", "sources")
            check_at_most(len(message.final_norm_scales), self.limits.explained_tokens, "final_norm_scales", "scales")
            self._check_set_size(message.interventions, "interventions")

    def check_set_counts(self, message: messages.InterveneRequest) -> None:
        """The same for interventions."""
        self.reader.chat.check_sizes(message.prompt.conversation, "prompt.conversation")
        check_at_most(len(message.sets), self.limits.intervention_sets, "sets", "sets")
        together = sum(len(each.interventions) for each in message.sets)
        for index, each in enumerate(message.sets):
            self._check_set_size(each.interventions, f"sets[{index}].interventions")
        check_at_most(together, self.limits.neurons, "sets", "interventions in all sets together")

    def check_conversation(self, message: messages.TraceRequest) -> None:
        """The same for a trace."""
        self.reader.chat.check_sizes(message.prompt.conversation, "prompt.conversation")

    def check_sizes(self, message: messages.TokenizeRequest) -> None:
        """The same for what becomes tokens."""
        self.reader.chat.check_sizes(message.conversation, "conversation")

    def attribute(self, request: AttributeRequest) -> tuple[AttributeTask, Origins | None]:
        """Make an attribution a task, and say where the tokens of a conversation come from."""
        self.check_model(request.model)
        options = self._options(request.options)
        read = self.reader.prompt(request)
        prompt = read.ids
        completion = self.reader.completion(request.completion)
        contrasted = self.reader.completion(request.contrast_completion, "contrast_completion", len(completion))
        self.reader.check_length(len(prompt), max(len(completion), len(contrasted)), request.generate)
        _check_answers(completion, contrasted)
        target, contrast = self._target_and_contrast(request)
        _check_contrast_method(contrast, options)
        task = AttributeTask(
            token_ids=prompt + completion,
            explained=() if request.generate else self._explained(request, prompt, target, completion),
            generate=request.generate or 0,
            sampling=_with_seed(request.sampling),
            stops=read.stops,
            contrast=contrast,
            options=options,
            contrast_answer=contrasted,
            in_prompt=request.span is not None,
        )
        _check_scales(task)
        self._check_query_sources(task, last=task.last_explained)
        self._check_explanations(task)
        self._check_exhaustive(task)
        check_seconds(task, self.predictor, self.limits.request_seconds)
        return task, read.origins

    def intervene(self, request: InterveneRequest) -> tuple[InterveneTask, Origins | None]:
        """Make interventions a task, and say where the tokens of a conversation come from."""
        self.check_model(request.model)
        for index, each in enumerate(request.sets):
            check_interventions(each, self.facts.sizes, self.limits.neurons, f"sets[{index}].interventions")
        read = self.reader.prompt(request)
        self.reader.check_length(len(read.ids), 0, request.generate or None)
        task = InterveneTask(
            token_ids=read.ids,
            sets=request.sets,
            target=self.reader.chosen(request.target, "target"),
            generate=request.generate,
            sampling=_with_seed(request.sampling),
            stops=read.stops,
            freeze_scale=request.freeze_scale,
        )
        self._check_generated(task)
        self._check_batch(task)
        check_seconds(task, self.predictor, self.limits.request_seconds)
        return task, read.origins

    def trace(self, request: TraceRequest) -> tuple[TraceTask, Origins | None]:
        """Make a trace a task, and say where the tokens of a conversation come from."""
        self.check_model(request.model)
        if self.facts.untraceable:
            raise FailedPreconditionError(
                f"{self.facts.identity.name} cannot be traced: {self.facts.untraceable}", reason="NOT_TRACEABLE"
            )
        options = self._trace_options(request.options)
        read = self.reader.prompt(request)
        completion = self.reader.completion(request.completion)
        self.reader.check_length(len(read.ids), len(completion), None)
        target, contrast = self._target_and_contrast(request)
        explained = self._explained(request, read.ids, target, completion)
        task = TraceTask(
            token_ids=read.ids + completion,
            explained=tuple(replace(each, spaced=None) for each in explained),
            contrast=contrast,
            options=options,
            in_prompt=request.span is not None,
        )
        asked = f"{options.nodes} neurons of a prompt of {task.length} tokens are to be kept"
        self._check_memory(task, "nodes", asked, "keep fewer, or shorten the prompt")
        check_seconds(task, self.predictor, self.limits.request_seconds)
        return task, read.origins

    def project(self, request: ProjectNeuronRequest) -> ProjectTask:
        """Make a projection a task."""
        self.check_model(request.model)
        check_at_least_one(len(request.neurons), "neurons")
        check_neurons(request.neurons, self.facts.sizes, self.limits.neurons)
        check_at_least_one(request.top_k, "top_k")
        self._check_count(request.top_k, "top_k")
        if request.through is not None:
            check_head(request.through, "through", self.facts.sizes)
        if request.subkey is Subkey.SUBVALUE:
            raise InvalidArgumentError.of("subkey", "subvalue is no subkey; to project subvalues set side to subvalue")
        task = ProjectTask(
            neurons=request.neurons,
            side=request.side,
            through=request.through,
            top_k=request.top_k,
            subkey=request.subkey,
        )
        self._check_projections(task)
        check_seconds(task, self.predictor, self.limits.request_seconds)
        return task

    def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """The tokens of a text or a conversation."""
        self.check_model(request.model)
        identity = self.facts.identity
        if isinstance(request.text, str):
            return TokenizeResult(identity, self.reader.tokens(request.text, request.add_special_tokens))
        read = self.reader.conversation(request.text, "conversation")
        return TokenizeResult(identity, read.tokens, read.origins.prompt, read.text)

    def _options(self, options: AttributeOptions) -> AttributeOptions:
        for name in ("top_k", "query_sources"):
            check_at_least_one(getattr(options, name), name)
        for name in ("top_k", "head_top_k", "projection_top_k", "query_sources", "position_projection_top_k"):
            self._check_count(getattr(options, name), name)
        check_neurons(options.neurons, self.facts.sizes, self.limits.neurons)
        check_interventions(options.interventions, self.facts.sizes, self.limits.neurons, "interventions")
        check_attributable(options.interventions, "interventions")
        parts = self._parts(options.parts)
        return replace(options, parts=parts & SUMMED_PARTS if options.aggregate_only else parts)

    def _trace_options(self, options: TraceOptions) -> TraceOptions:
        """The options, with the number that is screened where it was left out."""
        check_at_most(options.nodes, self.limits.trace_nodes, "nodes")
        self._check_count(options.projection_top_k, "projection_top_k")
        if options.screened is not None:
            check_at_most(options.screened, self.limits.trace_screened, "screened", "neurons")
        if options.screened is not None or not options.measure:
            return options
        most = max(options.nodes, self.limits.trace_screened)
        return replace(options, screened=min(SCREENED_PER_NODE * options.nodes, most))

    def _target_and_contrast(self, request: AttributeRequest | TraceRequest) -> tuple[int | None, int | None]:
        target = self.reader.chosen(request.target, "target")
        contrast = self.reader.chosen(request.contrast, "contrast")
        if contrast is not None and contrast == target:
            raise InvalidArgumentError.of("contrast", f"token {contrast} is the target itself; name another token")
        return target, contrast

    def _parts(self, parts: frozenset[Part]) -> frozenset[Part]:
        supported = frozenset(self.facts.supported_parts)
        if parts == ALL_PARTS:  # all there are, not a wish for each one
            return supported & ALL_PARTS
        missing = sorted(part.value for part in parts - supported)
        if missing:
            offered = ", ".join(part.value for part in self.facts.supported_parts)
            raise FailedPreconditionError(
                f"{self.facts.identity.name} cannot give {', '.join(missing)} "
                f"({self.facts.exactness.explanation}); it gives {offered}"
            )
        return parts

    def _explained(
        self,
        request: AttributeRequest | TraceRequest,
        prompt: tuple[int, ...],
        target: int | None,
        completion: tuple[int, ...],
    ) -> tuple[ExplainedToken, ...]:
        """What is explained: each prediction is made at the position before its token."""
        last = len(prompt) - 1
        if completion:
            return tuple(ExplainedToken(last + index, token) for index, token in enumerate(completion))
        if span := self.reader.span(request.span, len(prompt)):
            return tuple(ExplainedToken(position - 1, prompt[position]) for position in span)
        return (ExplainedToken(last, target, self.reader.spaced(request.target)),)

    def _check_count(self, value: int, field: str) -> None:
        check_at_most(value, self.limits.top_k, field)

    def _check_query_sources(self, task: AttributeTask, last: int) -> None:
        check_query_sources(task.options.query_from, self.facts.sizes, last, "query_from")
        if task.query_sources > self.limits.top_k:
            raise InvalidArgumentError.of(
                "query_from",
                f"stands for {task.query_sources} sources, over the limit {self.limits.top_k}: an attention neuron "
                "without a position is one at each; name positions, or fewer neurons",
            )

    def _check_exhaustive(self, task: AttributeTask) -> None:
        """Refuse what would take longer than a batch may, so that its worker would be killed amid the work."""
        sizes, limit = self.facts.sizes, self.limits.exhaustive_scores
        ffn = sizes.ffn_width + sizes.experts * sizes.expert_width
        attention = sizes.heads * sizes.head_size * task.tokens
        scores = task.rows * sizes.layers * (ffn + attention) * sizes.vocabulary
        if task.options.exhaustive and scores > limit:
            raise InvalidArgumentError.of(
                "exhaustive",
                f"scoring every neuron for {task.rows} of {task.tokens} tokens takes {scores:.1e} vocabulary scores, "
                f"over the limit {limit:.1e}; leave it unset, or explain fewer tokens of a shorter prompt",
                reason="TOO_EXHAUSTIVE",
            )

    def _check_set_size(self, interventions: Sequence[messages.Intervention], field: str) -> None:
        """Neurons, heads and layers of a set count together: each intervention names at least one.

        Heads and layers stand for many neurons, so that no more of them are named than there are.
        """
        sizes = self.facts.sizes
        check_at_most(len(interventions), self.limits.neurons, field, "interventions")
        named = sum(len(each.neurons) + len(each.heads) + len(each.layers) for each in interventions)
        check_at_most(named, self.limits.neurons, field, "neurons, heads and layers")
        heads, parts = (sum(len(getattr(each, name)) for each in interventions) for name in ("heads", "layers"))
        check_at_most(heads, sizes.layers * sizes.heads, field, "heads, more than the model has,")
        check_at_most(parts, len(LayerPartKind) * sizes.layers, field, "layer parts, more than the model has,")

    def _check_generated(self, task: InterveneTask) -> None:
        """Refuse more tokens in turn than any other request may generate: each is a forward pass."""
        steps, limit = task.generated_in_turn, self.limits.explained_tokens
        if steps > limit:
            raise InvalidArgumentError.of(
                "generate",
                f"{task.generate} tokens for each of {len(task.sets)} sets are {steps} one after another, over the "
                f"limit {limit}; generate fewer, or send fewer sets at a time",
            )

    def _check_batch(self, task: InterveneTask) -> None:
        """Refuse sets whose sequences could not run as one batch."""
        tokens = min(self.limits.batch_tokens, self.limits.queued_tokens)
        most = f"{len(task.sets)} sets and the plain prompt make {task.sequences} sequences of {task.length} tokens"
        if task.tokens > tokens:
            raise InvalidArgumentError.of(
                "sets", f"{most}, {task.tokens} together, over the limit {tokens}; send fewer sets at a time"
            )
        self._check_memory(task, "sets", most, "send fewer sets at a time, or shorten the prompt")

    def _check_projections(self, task: ProjectTask) -> None:
        asked = f"{len(task.neurons)} neurons with {2 * task.top_k} tokens each are asked for"
        self._check_memory(task, "neurons", asked, "name fewer neurons or lower top_k")

    def _check_explanations(self, task: AttributeTask) -> None:
        projected = task.cost(self.facts.memory.heads).projected_tokens
        asked = f"{task.rows} of {task.tokens} tokens are to be explained, with {projected} projected ones"
        remedy = "shorten the prompt, explain fewer tokens at once, or lower the counts of neurons and projected tokens"
        self._check_memory(task, "prompt", asked, remedy)
        patterns = pattern_bytes(task, self.facts.sizes)
        if patterns > self.limits.message_bytes:
            raise ResourceExhaustedError(
                f"the attention patterns would have {patterns} bytes, over the limit {self.limits.message_bytes}; "
                "explain fewer tokens at once, or shorten the prompt",
                reason="RESPONSE_TOO_LARGE",
            )
        least = LEAST_TOKEN_BYTES * projected // max(1, task.rows)
        if least > self.limits.message_bytes:
            raise ResourceExhaustedError(
                f"the answer would have at least {least} bytes for each explained token, over the limit "
                f"{self.limits.message_bytes}; lower top_k, projection_top_k or position_projection_top_k",
                reason="RESPONSE_TOO_LARGE",
            )

    def _check_memory(self, task: Task, field: str, asked: str, remedy: str) -> None:
        """Refuse what could not run even alone."""
        needed, available = self.facts.memory.batch([task]), self.facts.memory.available
        if needed > available:
            raise InvalidArgumentError.of(
                field,
                f"{asked}, which takes about {needed >> 20} MiB, and {available >> 20} MiB are free for a batch; "
                f"{remedy}",
                reason="NEEDS_TOO_MUCH_MEMORY",
            )


def _with_seed(sampling: Sampling | None) -> Sampling | None:
    """With one of the server's own where the caller gave none, short enough to be typed again."""
    if sampling is None or sampling.seed is not None:
        return sampling
    return replace(sampling, seed=secrets.randbits(_SEED_BITS))


def _check_scales(task: AttributeTask) -> None:
    count = len(task.options.final_norm_scales)
    if count not in (0, task.rows):
        raise InvalidArgumentError.of(
            "final_norm_scales", f"{count} scales for {task.rows} explained tokens; give one for each, or none"
        )


def _check_answers(answer: tuple[int, ...], contrasted: tuple[int, ...]) -> None:
    if contrasted and answer == contrasted:
        raise InvalidArgumentError.of("contrast_completion", "is the completion itself; give another answer")


def _check_contrast_method(contrast: int | None, options: AttributeOptions) -> None:
    if contrast is not None and options.scoring_method is not ScoringMethod.LOG_PROBABILITY_INCREASE:
        raise InvalidArgumentError.of(
            "scoring_method", "only the log probability increase works with a contrast; leave one of them out"
        )
