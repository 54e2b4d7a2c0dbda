"""The prompt of a command: a text, token ids, or messages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from neuron_attribution.cli.options import UsageError, add_flag, add_option, add_switch, comma_separated, whole_number
from neuron_attribution.conversations.messages import Conversation
from neuron_attribution.conversations.written import PromptLike, conversation
from neuron_attribution.errors import InvalidArgumentError

_IN_A_FILE = ("messages", "tools")


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the text, and what may stand in its place."""
    parser.add_argument("text", metavar="TEXT", nargs="?", help="the prompt")
    add_option(
        parser,
        "--token-ids",
        kind=comma_separated(whole_number),
        metavar="ID,...",
        help="the prompt as token ids, used exactly as given, in place of TEXT",
    )
    add_conversation_arguments(parser)


def add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the messages that may stand in a text's place, and what the model's chat template is told."""
    group = parser.add_argument_group("a conversation in place of TEXT, by the model's own chat template")
    add_option(group, "--system", metavar="TEXT", help="what the system says, first")
    add_option(group, "--user", metavar="TEXT", help="what the user says, last")
    add_option(
        group, "--messages", metavar="FILE", help='messages as JSON: [{"role": "user", "content": "Hi"}], or a request'
    )
    add_option(group, "--template", metavar="NAME", help="one of the model's named chat templates (default: its own)")
    add_option(
        group, "--template-argument", many=True, metavar="NAME=JSON", help="an argument of it: enable_thinking=false"
    )
    add_switch(group, "--generation-prompt", help="begin an answer behind the messages, or not (default: begin one)")
    add_flag(group, "--continue-final-message", help="end amid the final message, which the model then goes on with")


def prompt_of(arguments: argparse.Namespace) -> PromptLike:
    """The prompt that was given. Raises UsageError unless there is exactly one."""
    talk = conversation_of(arguments)
    given = [each for each in (arguments.text, arguments.token_ids, talk) if each is not None]
    if len(given) != 1:
        raise UsageError("give a TEXT, --token-ids or messages (--user, --messages), one of them")
    prompt: PromptLike = given[0]
    return prompt


def conversation_of(arguments: argparse.Namespace) -> Conversation | None:
    """The messages that were given, if there are any. Raises UsageError."""
    read = {} if arguments.messages is None else _read(Path(arguments.messages))
    first = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    last = [] if arguments.user is None else [{"role": "user", "content": arguments.user}]
    messages = [*first, *read.pop("messages", []), *last]
    if not messages:
        if _about_messages(arguments):
            raise UsageError("there are no messages for a chat template; give --user or --messages")
        return None
    if arguments.generation_prompt and arguments.continue_final_message:
        raise UsageError("--generation-prompt begins an answer, and --continue-final-message goes on with one")
    try:
        return conversation(
            messages,
            **read,
            template_arguments=dict(map(_argument, arguments.template_argument or ())),
            chat_template=arguments.template or "",
            add_generation_prompt=arguments.generation_prompt,
            continue_final_message=arguments.continue_final_message,
        )
    except InvalidArgumentError as error:
        raise UsageError(error.message) from None


def _about_messages(arguments: argparse.Namespace) -> bool:
    told = (arguments.template, arguments.template_argument or None, arguments.generation_prompt)
    return arguments.continue_final_message or any(each is not None for each in told)


def _read(path: Path) -> dict[str, Any]:
    """What a file of messages has: a list of them, or an object that has one, as requests to chat services do."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    found = {"messages": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        raise UsageError(f"{path} holds no list of messages")
    return {name: found[name] for name in _IN_A_FILE if found.get(name)}


def _argument(text: str) -> tuple[str, Any]:
    """A name and its value, which is JSON, or else a text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"{text!r} is not NAME=JSON")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
