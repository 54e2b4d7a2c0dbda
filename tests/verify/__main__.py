"""`python -m verify [--prompts N]`: exits with 1 when any ranking is not what brute force gives."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Before PyTorch is imported: spinning threads slow everything down where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from neuron_attribution_server.config import LoadSettings
from neuron_attribution_server.demo import demo_folder
from neuron_attribution_server.models import load_engine
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from verify.brute_force import BruteForce
from verify.prompts import PROMPTS
from verify.rankings import Comparison, compare
from verify.report import Run, write
from verify.states import States, record

TOP_K = (10, 100, 300, 1000)
REPORT = Path(__file__).parents[2] / "docs" / "verification.md"


def main() -> int:
    """Brute force first, then the engine's answers, then the report."""
    arguments = _arguments()
    start = time.perf_counter()
    prompts = _record(PROMPTS[: arguments.prompts])
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32)
    scores = BruteForce(model, prompts, arguments.threads).run()
    brute_force = time.perf_counter() - start
    engine = load_engine(LoadSettings("demo", dtype="float32", device="cpu", threads=arguments.threads))
    comparisons: list[Comparison] = []
    for prompt, of_prompt in tqdm(list(zip(prompts, scores, strict=True)), desc="engine", unit="prompt"):
        for top_k in TOP_K:
            for comparison in compare(engine, prompt, of_prompt, top_k):
                comparisons.append(comparison)
                _complain(prompt, comparison)
    run = Run(engine.facts, prompts, comparisons, brute_force, time.perf_counter() - start, arguments.threads)
    write(run, arguments.report)
    mistaken = sum(bool(comparison.mistakes) for comparison in comparisons)
    print(f"{len(comparisons) - mistaken} of {len(comparisons)} rankings are those of brute force; {arguments.report}")
    return int(mistaken > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m verify", description="The bounded top-k against brute force.")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first N prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the table is written")
    return parser.parse_args()


def _record(texts: tuple[str, ...]) -> list[States]:
    """What every prompt goes through; the model is loaded for it with attention that shows its weights."""
    tokenizer = Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32, attn_implementation="eager")
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return [record(model.eval(), ids) for ids in tqdm(encoded, desc="states", unit="prompt")]


def _complain(prompt: States, comparison: Comparison) -> None:
    if comparison.mistakes:
        wrong = ", ".join(comparison.mistakes)
        tqdm.write(f"MISMATCH ({wrong}): {comparison} for the tokens {prompt.tokens}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
