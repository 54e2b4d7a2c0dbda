"""The synchronous client."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from neuron_attribution import _calls
from neuron_attribution._base import BaseClient
from neuron_attribution._calls import AttributeArguments, NeuronLike, ProjectArguments, TextOrIds
from neuron_attribution.results import AttributeResult, ModelInfo, ProjectNeuronResult, TokenizeResult
from neuron_attribution.streams import RequestStream, StreamItem, StreamResult, read_response

Result = TypeVar("Result")


class Client(BaseClient[grpc.Channel]):
    """A connection to a neuron attribution service; threads may share it.

    `timeout` is the deadline of every call in seconds, None for none; each method takes one of its own. For TLS and
    tokens see Connection. Failures raise the errors of `neuron_attribution.errors`.
    """

    def _open(self) -> grpc.Channel:
        return self._connection.open()

    def attribute(
        self, prompt: TextOrIds, *, timeout: float | None = None, **arguments: Unpack[AttributeArguments]
    ) -> AttributeResult:
        """Explain next-token predictions of a prompt: text, or token ids used exactly as given.

        Keyword arguments are the fields of AttributeRequest (target, completion, generate, contrast,
        add_special_tokens, model) and of AttributeOptions (parts, top_k, direction, ...). Enums are also accepted by
        their values ("increase"), neurons as they are written ("24.1005").
        """
        return self._run(_calls.attribute(prompt, **arguments), timeout)

    def attribute_stream(
        self, requests: Iterable[StreamItem], *, reproducible: bool = False, timeout: float | None = None
    ) -> Generator[StreamResult, None, None]:
        """Explain a corpus: outcomes come as they finish, each under its item's key, in no order.

        An item is a prompt's text or an AttributeRequest, alone or as (key, item). An item that fails has an error in
        its outcome and the stream goes on; a full queue is waited out. At most READ_AHEAD items are taken ahead of
        the outcomes. `timeout` is for the whole stream, and there is none by default. Closing the iterator cancels
        what is not answered. What the items' iterable raises is raised once all before it is answered. `reproducible`
        asks for answers whose bits do not depend on what shares their batch: a CPU gives them, in up to a quarter more
        time.
        """
        sending = RequestStream(requests, reproducible=reproducible)
        call = self._stub.AttributeStream(iter(sending), timeout=timeout, metadata=self._metadata())
        try:
            for response in call:
                sending.answered()
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
        return self._run(_calls.project_neuron(neurons, **arguments), timeout)

    def tokenize(
        self, text: str, *, add_special_tokens: bool | None = None, model: str = "", timeout: float | None = None
    ) -> TokenizeResult:
        """Show the exact tokens a text becomes."""
        return self._run(_calls.tokenize(text, add_special_tokens, model), timeout)

    def get_model(self, *, model: str = "", timeout: float | None = None) -> ModelInfo:
        """Describe the served model."""
        return self._run(_calls.get_model(model), timeout)

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: _calls.Call[Result], timeout: float | None) -> Result:
        method = getattr(self._stub, call.method)
        deadline = self._deadline(timeout)
        try:
            response = method(call.request, timeout=deadline, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._error(error) from error
        return call.read(response)
