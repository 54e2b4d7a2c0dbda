"""The synchronous client."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from neuron_attribution.comparing import head_effects, predictions
from neuron_attribution.comparing.head_effects import HeadEffectArguments
from neuron_attribution.comparing.predictions import CompareArguments, Question, Steps
from neuron_attribution.comparisons import Comparison, HeadEffects
from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.conversations.written import ConversationArguments, PromptLike
from neuron_attribution.errors import NeuronAttributionError
from neuron_attribution.requests import Intervention
from neuron_attribution.results import AttributeResult, InterveneResult, ModelInfo, ProjectNeuronResult, TokenizeResult
from neuron_attribution.traces import Trace
from neuron_attribution.transport import calls
from neuron_attribution.transport.base import BaseClient
from neuron_attribution.transport.calls import (
    AttributeArguments,
    InterveneArguments,
    NeuronLike,
    ProjectArguments,
    TraceArguments,
)
from neuron_attribution.transport.streams import RequestStream, StreamItem, StreamResult, read_response

Result = TypeVar("Result")


class Client(BaseClient[grpc.Channel]):
    """A connection to a neuron attribution service; threads may share it.

    `timeout` is the deadline of every call in seconds, None for none; each method takes one of its own. For TLS and
    tokens see Connection. Failures raise the errors of `neuron_attribution.errors`.
    """

    def _open(self) -> grpc.Channel:
        return self._connection.open()

    def attribute(
        self, prompt: PromptLike | None = None, *, timeout: float | None = None, **arguments: Unpack[AttributeArguments]
    ) -> AttributeResult:
        """Explain next-token predictions of a prompt: text, token ids used exactly as given, or a conversation.

        A conversation is `messages=[{"role": "user", "content": "Hi"}]` in place of the prompt, which the model's chat
        template makes a text; with it go tools, template_arguments, chat_template, add_generation_prompt and
        continue_final_message. Every method that takes a prompt takes them.
        Keyword arguments are the fields of AttributeRequest (target, completion, generate, sampling, contrast,
        add_special_tokens, model) and of AttributeOptions (parts, top_k, direction, ...). Enums are also accepted by
        their values ("increase"), neurons as they are written ("24.1005").
        """
        return self._run(calls.attribute(prompt, **arguments), timeout)

    def attribute_stream(
        self,
        requests: Iterable[StreamItem],
        *,
        reproducible: bool = False,
        each_token: bool = False,
        timeout: float | None = None,
        **arguments: Unpack[AttributeArguments],
    ) -> Generator[StreamResult, None, None]:
        """Explain a corpus: outcomes come as they finish, each under its item's key, in no order.

        An item is a prompt's text or an AttributeRequest, alone or as (key, item). Keyword arguments are those of
        `attribute`, for every item that is a text. An item that fails has an error in
        its outcome and the stream goes on; a full queue and a restarting worker are waited out. At most READ_AHEAD
        items are taken ahead of the outcomes. `timeout` is for the whole stream, and there is none by default. Closing
        the iterator cancels what is not answered. What the items' iterable raises is raised once all before it is
        answered. `reproducible` asks for answers whose bits do not depend on what shares their batch: a CPU gives them,
        in up to a quarter more time. With `each_token` the tokens of a completion come as outcomes of their own, in
        order, each an answer with one explanation.
        """
        sending = RequestStream(requests, arguments, reproducible=reproducible, each_token=each_token)
        call = self._stub.AttributeStream(iter(sending), timeout=timeout, metadata=self._metadata())
        try:
            for response in call:
                sending.answered(response)
                yield from sending.refused()
                yield read_response(response)
        except grpc.RpcError as error:
            raise self._error(error) from error
        finally:
            call.cancel()
            sending.close()
        yield from sending.refused()
        if sending.failure is not None:
            raise sending.failure

    def compare(
        self,
        prompt: PromptLike | None = None,
        other_prompt: PromptLike | None = None,
        *,
        other: Client | None = None,
        timeout: float | None = None,
        **arguments: Unpack[CompareArguments],
    ) -> Comparison:
        """Find the neurons whose score differs most between two predictions, exactly; and layers and heads.

        The predictions are those of two prompts, of one prompt here and on an `other` client's server, or of one prompt
        with and without `interventions`, which are made on the second side. Each side explains its own next token
        unless a `target` is given; a prompt compared with itself has one. Keyword arguments: target, contrast,
        other_messages, add_special_tokens, model, top_k (neurons of each kind and direction), projection_top_k,
        include_final_norm_bias, interventions, freeze_scale. `timeout` is that of each of the requests this takes.
        """
        steps = predictions.compare(prompt, other_prompt, one_server=other is None, **arguments)
        return self._follow(steps, (self, other or self), timeout)

    def head_effects(
        self,
        prompt: PromptLike | None = None,
        *,
        timeout: float | None = None,
        **arguments: Unpack[HeadEffectArguments],
    ) -> HeadEffects:
        """Zero every head of the model in turn and report what becomes of the prediction.

        Keyword arguments: target, add_special_tokens, model. `timeout` is that of each of the requests this takes.
        """
        return self._follow(head_effects.head_effects(prompt, **arguments), (self,), timeout)

    def project_neuron(
        self,
        neurons: NeuronLike | Iterable[NeuronLike],
        *,
        timeout: float | None = None,
        **arguments: Unpack[ProjectArguments],
    ) -> ProjectNeuronResult:
        """Project one or many neurons into the vocabulary.

        Keyword arguments are the fields of ProjectNeuronRequest: side, through, top_k, subkey, model.
        """
        return self._run(calls.project_neuron(neurons, **arguments), timeout)

    def intervene(
        self,
        prompt: PromptLike | None = None,
        sets: Iterable[Iterable[Intervention]] | None = None,
        *,
        timeout: float | None = None,
        **arguments: Unpack[InterveneArguments],
    ) -> InterveneResult:
        """Rerun a prompt with neurons changed, once for each set of interventions; the predictions before and after.

        For one set, instead of `sets`: `zero=["24.1005", "23.h4"]`, `scale={"24.1005": 2}`, `set={"7.ffn": 0}`, made in
        this order, and `explained_position_only`. Further keyword arguments are the fields of InterveneRequest: target,
        generate, sampling, add_special_tokens, freeze_scale, model.
        """
        return self._run(calls.intervene(prompt, sets, **arguments), timeout)

    def trace(
        self, prompt: PromptLike | None = None, *, timeout: float | None = None, **arguments: Unpack[TraceArguments]
    ) -> Trace:
        """Follow a prediction back to the prompt's tokens: a graph of FFN neurons, each at its position, and edges.

        The prompt is what `attribute` takes. Keyword arguments are the fields of TraceRequest (target, completion,
        span, contrast, add_special_tokens, model) and of TraceOptions (nodes, edge_share, subkey, measure, heads,
        screened, projection_top_k, leave_out_always_on).
        """
        return self._run(calls.trace(prompt, **arguments), timeout)

    def tokenize(
        self,
        text: str | Conversation | None = None,
        *,
        add_special_tokens: bool | None = None,
        model: str = "",
        timeout: float | None = None,
        **arguments: Unpack[ConversationArguments],
    ) -> TokenizeResult:
        """Show the exact tokens a text becomes, or messages do, which may stand in its place as in `attribute`."""
        return self._run(calls.tokenize(text, add_special_tokens, model, **arguments), timeout)

    def get_model(self, *, model: str = "", timeout: float | None = None) -> ModelInfo:
        """Describe the served model."""
        return self._run(calls.get_model(model), timeout)

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: calls.Call[Result], timeout: float | None) -> Result:
        method = getattr(self._stub, call.method)
        deadline = self._deadline(timeout)
        try:
            response = method(call.request, timeout=deadline, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._error(error) from error
        return call.read(response)

    def _follow(self, steps: Steps[Result], clients: Sequence[Client], timeout: float | None) -> Result:
        """Ask what the steps want to know of each side's client, until they are done; errors are raised in them."""
        step = partial(steps.send, None)
        try:
            while True:
                questions = step()
                try:
                    step = partial(steps.send, _ask_together(clients, questions, timeout))
                except NeuronAttributionError as error:
                    step = partial(steps.throw, error)
        except StopIteration as end:
            outcome: Result = end.value
            return outcome

    def _start(self, call: calls.Call[Result], timeout: float | None) -> grpc.Future[Message]:
        method = getattr(self._stub, call.method)
        future: grpc.Future[Message] = method.future(
            call.request, timeout=self._deadline(timeout), metadata=self._metadata()
        )
        return future

    def _finish(self, call: calls.Call[Result], future: grpc.Future[Message]) -> Result:
        try:
            return call.read(future.result())
        except grpc.RpcError as error:
            raise self._error(error) from error


def _ask_together(clients: Sequence[Client], questions: Sequence[Question], timeout: float | None) -> list[Any]:
    """The answers to calls that run at the same time; where one fails the others are cancelled."""
    futures = [clients[side]._start(call, timeout) for side, call in questions]
    try:
        return [clients[side]._finish(call, future) for (side, call), future in zip(questions, futures, strict=True)]
    finally:
        for future in futures:
            future.cancel()
