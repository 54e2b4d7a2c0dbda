"""What explaining the end of a long conversation takes beside its forward pass, by part: seconds and memory.

    cd tests && python -m benchmarks.long_prompts [--model demo|random] [--tokens 512 2048 8192] [--explained 30]

Every point is a process of its own, in which the same work runs twice: the second run is measured. Memory is what the
process's resident set grew by at its peak; beside it is what the engine predicts. `random` is a small Llama model with
a context of 8,192 tokens and random weights, so that 8,192 tokens take seconds; `demo` is the demo model.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

RUNS = 2
PLAIN = "the forward pass alone"
PARTS = {
    "layers": ("layers",),
    "heads": ("heads",),
    "ffn-value-neurons": ("ffn-value-neurons",),
    "head-positions": ("head-positions",),
    "attention-value-neurons over positions": ("attention-value-neurons",),
    "attention-value-neurons": ("attention-value-neurons",),
    "query-layers": ("query-layers",),
    "query-ffn-neurons": ("query-ffn-neurons",),
    "all but queries, over positions": (
        *("layers", "heads", "head-positions"),
        *("ffn-value-neurons", "attention-value-neurons"),
    ),
    "every part": (),
    "every part, their sum alone": (),
}
RANDOM = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_prompts", description=__doc__)
    parser.add_argument("--model", choices=("demo", "random"), default="random")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--explained", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=(PLAIN, *PARTS), default=[PLAIN, *PARTS])
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point is not None:
        print(json.dumps(_point(options, *options.point)))
        return
    print(
        f"{options.model} model, the last {options.explained} tokens, {options.threads} of {os.cpu_count()} cores, "
        f"{platform.machine()}; the second of two runs of each\n"
    )
    print("| tokens | what | passes | seconds | of them the pass | MiB | MiB predicted |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for tokens in options.tokens:
        for part in options.parts:
            own = [*sys.argv[1:], "--point", part, str(tokens)]
            found = subprocess.run(
                [sys.executable, "-m", "benchmarks.long_prompts", *own], stdout=subprocess.PIPE, check=False
            )
            if found.returncode:
                print(f"| {tokens:,} | {part} | exit status {found.returncode} | | | | |", flush=True)
                continue
            point = json.loads(found.stdout)
            predicted = "" if point["predicted"] is None else f"{point['predicted'] / 2**20:,.0f}"
            print(
                f"| {tokens:,} | {part} | {point['passes']} | {point['seconds']:.2f} | {point['forward']:.2f} "
                f"| {point['taken'] / 2**20:,.0f} | {predicted} |",
                flush=True,
            )


def _point(options: argparse.Namespace, part: str, tokens: str) -> dict[str, float | None]:
    """One measured point: seconds, those of the forward pass, bytes taken and predicted."""
    from neuron_attribution.requests import ALL_PARTS, Aggregate, AttributeOptions, Part
    from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken

    engine, length = _engine(options), int(tokens)
    ids = tuple(1 + place % 997 for place in range(length))
    passes: list[None] = []
    engine._view.body.register_forward_hook(lambda *_: passes.append(None))
    if part == PLAIN:
        return {**_measured(lambda: _plain(engine, ids)), "predicted": None, "passes": len(passes) // RUNS}
    parts = frozenset(map(Part, PARTS[part])) or ALL_PARTS
    together = part.endswith("alone")
    asked = AttributeOptions(
        parts=parts,
        attention_neurons_over_positions="over" in part or together,
        aggregate=Aggregate.SUM if together else None,
        aggregate_only=together,
    )
    explained = tuple(map(ExplainedToken, range(length - options.explained, length)))
    task = AttributeTask(token_ids=ids, explained=explained, options=asked)
    measured = _measured(lambda: _explained(engine, task))
    return {**measured, "predicted": engine.facts.memory.batch([task]), "passes": len(passes) // RUNS}


def _engine(options: argparse.Namespace):
    import torch
    from neuron_attribution_server.model.loading.models import engine_from, load_engine
    from neuron_attribution_server.settings.config import LoadSettings
    from transformers import LlamaConfig, LlamaForCausalLM

    if options.model == "demo":
        return load_engine(LoadSettings("demo", device="cpu", threads=options.threads))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return engine_from(LlamaForCausalLM(LlamaConfig(**RANDOM, bos_token_id=None, eos_token_id=None)))


def _plain(engine, ids: tuple[int, ...]) -> float:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        engine._view.body(input_ids=torch.tensor([ids]), use_cache=False)
    return time.perf_counter() - started


def _explained(engine, task) -> float:
    (outcome,) = engine.run([task])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.forward


def _measured(call) -> dict[str, float]:
    for _ in range(RUNS):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, started = _resident("VmRSS"), time.perf_counter()
        forward = call()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "forward": forward, "taken": _resident("VmHWM") - before}


def _resident(name: str) -> int:
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
