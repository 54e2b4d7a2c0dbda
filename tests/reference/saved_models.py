"""Tiny models as folders that are served like anybody's."""

from __future__ import annotations

from pathlib import Path

import torch
from service.fakes import SIZES, byte_level_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from reference.tiny_families import tiny_family


def saved(folder: Path, family: str = "llama") -> Path:
    """A tiny model in a folder, with a tokenizer."""
    model = tiny_family(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(SIZES.vocabulary, mean_resizing=False)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """One token for every byte."""
    tokenizer = Tokenizer.from_str(byte_level_tokenizer())
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
