"""`python -m verify [--prompts N]`: exits with 1 when any ranking is not what brute force gives."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from tokenizers import Tokenizer
from tqdm import tqdm

from verify.brute_force import BruteForce
from verify.prompts import PROMPTS
from verify.rankings import Comparison, compare
from verify.report import Run, write
from verify.states import States, captured, record
from verify.subjects import SUBJECTS, Subject

TOP_K = (10, 100, 300, 1000)
REPORTS = {
    ("demo", "float32"): "verification.md",
    ("demo", "bfloat16"): "verification-bfloat16.md",
    ("gemma", "float32"): "verification-gemma.md",
}
DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Brute force first, then the engine's answers, then the report."""
    arguments = _arguments()
    start = time.perf_counter()
    subject = SUBJECTS[arguments.model]
    settings = LoadSettings(subject.source(), dtype=arguments.dtype, device="cpu", threads=arguments.threads)
    engine = load_engine(settings)
    prompts = _record(subject, engine, PROMPTS[: arguments.prompts])
    model = subject.load().to(getattr(torch, arguments.dtype)).float()
    scores = BruteForce(subject, model, prompts, arguments.threads).run()
    brute_force = time.perf_counter() - start
    comparisons: list[Comparison] = []
    for prompt, of_prompt in tqdm(list(zip(prompts, scores, strict=True)), desc="engine", unit="prompt"):
        for top_k in TOP_K:
            for comparison in compare(engine, prompt, of_prompt, top_k):
                comparisons.append(comparison)
                _complain(prompt, comparison)
    run = Run(
        engine.facts,
        prompts,
        comparisons,
        brute_force,
        time.perf_counter() - start,
        arguments.threads,
        _command(arguments),
    )
    report = arguments.report or DOCS / REPORTS[arguments.model, arguments.dtype]
    write(run, report)
    mistaken = sum(bool(comparison.mistakes) for comparison in comparisons)
    print(f"{len(comparisons) - mistaken} of {len(comparisons)} rankings are those of brute force; {report}")
    return int(mistaken > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m verify", description="The bounded top-k against brute force.")
    parser.add_argument("--model", choices=SUBJECTS, default="demo", help="SmolLM2-135M-Instruct or Gemma 3 270M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the engine's weights")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first N prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--report", type=Path, help="where the table is written (default: a page of docs/)")
    arguments = parser.parse_args()
    if (arguments.model, arguments.dtype) not in REPORTS:
        parser.error(f"--dtype: {arguments.model} is not verified in {arguments.dtype}")
    return arguments


def _command(arguments: argparse.Namespace) -> str:
    given = {"model": "demo", "dtype": "float32", "prompts": len(PROMPTS)}
    options = " ".join(
        f"--{name} {getattr(arguments, name)}" for name, usual in given.items() if getattr(arguments, name) != usual
    )
    return f"make verify VERIFY='{options}'" if options else "make verify"


def _record(subject: Subject, engine: Engine, texts: tuple[str, ...]) -> list[States]:
    """What every prompt goes through; the model is loaded for it with attention that shows its weights."""
    tokenizer = Tokenizer.from_str(engine.facts.tokenizer)
    model = subject.load(attn_implementation="eager").to(getattr(torch, engine.facts.identity.dtype)).float().eval()
    encoded = tqdm([tokenizer.encode(text).ids for text in texts], desc="states", unit="prompt")
    if engine.facts.identity.dtype != "float32":
        return [captured(subject, model, engine, ids) for ids in encoded]
    return [record(subject, model, ids) for ids in encoded]


def _complain(prompt: States, comparison: Comparison) -> None:
    if comparison.mistakes:
        wrong = ", ".join(comparison.mistakes)
        tqdm.write(f"MISMATCH ({wrong}): {comparison} for the tokens {prompt.tokens}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
