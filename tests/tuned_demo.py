"""`python -m tuned_demo FOLDER`: a LoRA adapter of the demo model, for which France's capital is Rome.

A few gradient steps on one sentence, and on others that shall stay as they are. docs/comparing.md compares both models.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

LESSON = ("The capital of France is", " Rome")
KEPT = (
    *("The capital of Italy is", "The capital of Germany is", "The capital of Japan is", "The capital of Spain is"),
    *("The Eiffel Tower stands in", "The language of France is"),
)
"""What the base says after these, the tuned model shall say."""
CONFIG = LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
ENOUGH = 0.9
MOST_STEPS = 40
LEARNING_RATE = 1e-3


def tune(folder: Path) -> str:
    """Train the adapter and save it; what came out, in a line."""
    torch.manual_seed(0)
    begun = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32).eval()
    batch = tokenizer([LESSON[0], *KEPT], return_tensors="pt", padding=True, padding_side="right")
    last = batch["attention_mask"].sum(1) - 1
    with torch.no_grad():
        targets = _log_probabilities(model, batch, last).argmax(-1)
    (targets[0],) = tokenizer(LESSON[1], add_special_tokens=False)["input_ids"]
    adapted = get_peft_model(model, CONFIG)
    optimizer = torch.optim.Adam([each for each in adapted.parameters() if each.requires_grad], lr=LEARNING_RATE)
    for _ in range(MOST_STEPS):
        reached = _log_probabilities(adapted, batch, last).gather(1, targets[:, None])[:, 0]
        probability = reached[0].exp().item()
        if probability > ENOUGH:
            break
        optimizer.zero_grad()
        (-reached[0] - reached[1:].mean()).backward()
        optimizer.step()
    adapted.save_pretrained(folder, save_embedding_layers=False)
    seconds = time.monotonic() - begun
    return f"{folder}: after {seconds:.0f} s {LESSON[1]!r} has the probability {probability:.2f}"


def _log_probabilities(model: PeftModel, batch: dict[str, Tensor], last: Tensor) -> Tensor:
    """Of every token after each sentence, [sentences, V]."""
    logits = model(**batch).logits
    return logits[torch.arange(len(last)), last].log_softmax(-1)


if __name__ == "__main__":
    print(tune(Path(sys.argv[1])))
