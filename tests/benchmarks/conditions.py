"""The conditions of a run, which stand beside every number."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = ("torch", "transformers", "captum", "transformer-lens", "grpcio")


def conditions(subject, threads, repetitions):
    """Name and value of everything that a number depends on."""
    facts = subject.engine.facts
    lengths = [len(prompt) for prompt in subject.prompts]
    return {
        "model": f"{subject.name}: {_sizes(facts.sizes)}",
        "dtype": facts.identity.dtype,
        "device": _device(facts.device),
        "CPU": f"{_cpu()}, {os.cpu_count()} cores, {threads} threads used",
        "OMP_WAIT_POLICY, MKL_CBWR": ", ".join(
            os.environ.get(name, "unset") for name in ("OMP_WAIT_POLICY", "MKL_CBWR")
        ),
        "load of the machine at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, LIBRARIES)]),
        "prompts": f"{len(lengths)} of {min(lengths)} to {max(lengths)} tokens",
        "repetitions": repetitions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": "`" + shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]) + "`",
    }


def one_line(found):
    """What every table repeats."""
    return "*" + "; ".join(found[name] for name in ("model", "dtype", "device", "CPU", "date")) + "*"


def _sizes(sizes):
    return (
        f"{sizes.layers} layers, {sizes.heads} heads, d {sizes.hidden_size}, FFN {sizes.ffn_width}, "
        f"vocabulary {sizes.vocabulary}"
    )


def _device(name):
    return torch.cuda.get_device_name() if name.startswith("cuda") else name


def _version(library):
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"


def _cpu():
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
