"""The chat templates of a checkpoint, wherever transformers finds them, for who renders conversations without it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from neuron_attribution_server.tasks.model_facts import DEFAULT_TEMPLATE, ChatTemplates


def chat_templates(tokenizer: PreTrainedTokenizerBase) -> ChatTemplates:
    """A single template is the default one; several have names of their own."""
    found: str | dict[str, str] | None = tokenizer.chat_template
    templates = found if isinstance(found, dict) else {DEFAULT_TEMPLATE: found} if found else {}
    return ChatTemplates(dict(templates), dict(tokenizer.special_tokens_map))
