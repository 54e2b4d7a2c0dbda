"""The tokens that a request names, as text or as ids; what is none of the model's, or too long, is refused by name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.convert.values import unicode_text
from neuron_attribution.errors import InvalidArgumentError
from neuron_attribution.requests import AttributeRequest, InterveneRequest, Span
from neuron_attribution.results import Limits, TokenizedToken
from neuron_attribution.traces import TraceRequest

from neuron_attribution_server.front_end.conversations.answer_ends import AnswerEnds
from neuron_attribution_server.front_end.conversations.chat import Chat
from neuron_attribution_server.front_end.conversations.origins import Origins, answer_origin, token_origins
from neuron_attribution_server.tasks.checks import check_at_least_one, check_at_most
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """The token ids of a prompt, and of a conversation where they come from."""

    ids: tuple[int, ...]
    origins: Origins | None = None
    stops: tuple[int, ...] = ()
    """What ends an answer beside what ends the model's texts."""


@dataclass(frozen=True, slots=True)
class ReadConversation:
    """The text of a conversation, its tokens, and where they come from."""

    text: str
    tokens: tuple[TokenizedToken, ...]
    origins: Origins
    stops: tuple[int, ...]


@dataclass(frozen=True)
class TokenReader:
    """Reads tokens of a model with so large a vocabulary. Raises InvalidArgumentError."""

    tokenizer: ExactTokenizer
    limits: Limits
    vocabulary: int
    chat: Chat
    answer_ends: AnswerEnds

    def prompt(self, request: AttributeRequest | InterveneRequest | TraceRequest) -> ReadPrompt:
        """The ids of a prompt, at least one."""
        if isinstance(request.prompt, Conversation):
            goes_on = not isinstance(request, TraceRequest) and bool(request.generate)
            read = self.conversation(request.prompt, "prompt.conversation", goes_on=goes_on)
            return ReadPrompt(tuple(item.token.id for item in read.tokens), read.origins, read.stops)
        if not isinstance(request.prompt, str):
            return ReadPrompt(self._given_ids(request.prompt, "prompt"))
        self._check_text(request.prompt, "prompt.text")
        ids = self.tokenizer.ids(request.prompt, request.add_special_tokens)
        if not ids:
            raise InvalidArgumentError.of("prompt.text", "becomes no token; give at least one")
        return ReadPrompt(ids)

    def conversation(self, conversation: Conversation, field: str, *, goes_on: bool = False) -> ReadConversation:
        """The text and the tokens that a conversation becomes, whose words they are, and where it ends if it goes on.

        Raises FailedPreconditionError for a model without a chat template and one whose template fails.
        """
        job = self.chat.job(conversation, field)
        with self.chat.renderer.turn() as render:  # so many are rendered, and tokenized, at a time
            rendered = render(job, field)
            self._check_text(rendered.text, field)
            tokens, offsets = self.tokenizer.encoded(rendered.text, add_special_tokens=False)
            if not tokens:
                raise InvalidArgumentError.of(field, "becomes no token; give at least one")
            roles = [message.role for message in conversation.messages]
            origins = Origins(token_origins(rendered, offsets, roles), answer_origin(conversation))
            stops = self.answer_ends.of(job["template"], render) if goes_on else ()
        return ReadConversation(rendered.text, tuple(tokens), origins, stops)

    def completion(
        self, completion: str | tuple[int, ...] | None, field: str = "completion", others: int = 0
    ) -> tuple[int, ...]:
        """The ids of a completion; none where there is none. `others` are explained beside it."""
        if completion is None:
            return ()
        if not isinstance(completion, str):
            ids = self._given_ids(completion, field)
        else:
            self._check_text(completion, f"{field}.text")
            ids = self.tokenizer.continuation(completion)
        if not ids:
            raise InvalidArgumentError.of(f"{field}.text", "becomes no token; give at least one")
        beside = f"tokens beside {others} of the other answer" if others else "tokens"
        check_at_most(len(ids), self.limits.explained_tokens - others, field, beside)
        return ids

    def span(self, span: Span | None, prompt: int) -> range:
        """The positions of a prompt of so many tokens that a request names; none where there is no span."""
        if span is None:
            return range(0)
        check_at_most(span.end, prompt, "span.end", "of the prompt's tokens")
        check_at_most(span.end - span.start, self.limits.explained_tokens, "span", "tokens")
        return range(span.start, span.end)

    def chosen(self, choice: str | int | None, field: str) -> int | None:
        """The id of one token."""
        if isinstance(choice, str):
            self._check_text(choice, f"{field}.text")
            return self.tokenizer.token_named(choice, f"{field}.text")
        if choice is not None:
            self._check_id(choice, f"{field}.id")
        return choice

    def spaced(self, choice: str | int | None) -> int | None:
        """The token of a chosen text behind a space, if there is one, where the text itself begins with none."""
        if not isinstance(choice, str) or choice[:1].isspace():
            return None
        with suppress(InvalidArgumentError):
            return self.tokenizer.token_named(f" {choice}", "")
        return None

    def check_length(self, prompt: int, completion: int, generate: int | None) -> None:
        """Refuse so many tokens together where they are more than a request may have."""
        if generate is not None:
            check_at_least_one(generate, "generate")
            check_at_most(generate, self.limits.explained_tokens, "generate", "tokens")
        total = prompt + completion + (generate or 0)
        if total > self.limits.tokens:
            parts = f"{prompt} in the prompt, {completion} in the completion, {generate or 0} to generate"
            raise InvalidArgumentError.of("prompt", f"{total} tokens ({parts}) are over the limit {self.limits.tokens}")

    def tokens(self, text: str, add_special: bool | None) -> tuple[TokenizedToken, ...]:
        """The tokens of a text, with their bytes; None adds special ones where the model does."""
        self._check_text(text, "text")
        return tuple(self.tokenizer.encode(text, add_special))

    def _given_ids(self, ids: tuple[int, ...], field: str) -> tuple[int, ...]:
        if not ids:
            raise InvalidArgumentError.of(f"{field}.token_ids", "is empty; give at least one token")
        check_at_most(len(ids), self.limits.tokens, field, "tokens")
        for index, id in enumerate(ids):
            self._check_id(id, f"{field}.token_ids.ids[{index}]")
        return ids

    def _check_id(self, id: int, field: str) -> None:
        size = self.vocabulary
        if not 0 <= id < size:
            raise InvalidArgumentError.of(field, f"token {id} does not exist; this model has tokens 0 to {size - 1}")

    def _check_text(self, text: str, field: str) -> None:
        """Refuse a text before time is spent on its tokens, where it cannot be short enough."""
        if not text:
            raise InvalidArgumentError.of(field, "is empty; give at least one token")
        unicode_text(text, field)
        if len(text) > self.limits.tokens * self.tokenizer.longest_token:
            raise InvalidArgumentError.of(
                field, f"{len(text)} characters are more than the limit of {self.limits.tokens} tokens can hold"
            )
