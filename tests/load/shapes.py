"""Models of other sizes than the demo's, with random weights, its architecture and its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES = {
    "15 layers": {"num_hidden_layers": 15},
    "the demo's sizes": {},
    "twice the width": {
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_attention_heads": 18,
        "num_key_value_heads": 6,
    },
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_shape(name: str, folder: Path) -> None:
    """Write a model of a shape into a folder, as transformers does."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(demo_folder())
    for key, value in SHAPES[name].items():
        setattr(config, key, value)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copy(demo_folder() / file, folder)
