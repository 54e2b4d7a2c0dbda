"""`python -m verify.answer_bytes OUTPUT [MODEL ...]`: what a server answers, as digests of the serialized messages.

Run it with two versions of the server on the path and compare the outputs: a change that is to change nothing changes
no line. Times are left out. Each request is sent alone, so that every batch is the same. A model is `demo` or the name
of a tiny family, which is saved to a folder first.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from google.protobuf.message import Message
from neuron_attribution.v1 import neuron_attribution_pb2 as messages
from neuron_attribution.v1 import neuron_attribution_pb2_grpc as services
from reference.saved_models import saved

from verify.prompts import PROMPTS

MODELS = ("demo", "llama", "gpt2", "mixtral", "gemma2")
"""Gated, ungated, with experts, with norms after its blocks."""
COUNT = 10
SECONDS = 300
HEAD = messages.Head(layer=1, head=1)
EXPERTS = {"mixtral": {"expert": 1}}
"""Of models that have no network which every token passes through."""


def main() -> None:
    """Write a line for each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    with arguments.output.open("w") as output:
        for model in arguments.models:
            with served(model) as stub:
                for name, answer in answers(stub, named(model)):
                    if "timings" in answer.DESCRIPTOR.fields_by_name:
                        answer.ClearField("timings")
                    data = answer.SerializeToString(deterministic=True)
                    output.write(f"{model} {name} {len(data)} {hashlib.sha256(data).hexdigest()}\n")


def named(model: str) -> list[messages.Neuron]:
    """Two FFN neurons and an attention neuron."""
    expert = EXPERTS.get(model, {})
    ffn = [messages.FfnNeuron(layer=layer, index=index, **expert) for layer, index in ((0, 3), (1, 7))]
    attention = messages.AttentionNeuron(layer=1, head=1, index=2)
    return [*(messages.Neuron(ffn=each) for each in ffn), messages.Neuron(attention=attention)]


def answers(
    stub: services.NeuronAttributionServiceStub, neurons: list[messages.Neuron]
) -> Iterator[tuple[str, Message]]:
    """Every part in every direction, then interventions, of ten prompts; then projections."""
    zero = messages.Intervention(neurons=neurons[:2], zero=True)
    halved = messages.Intervention(heads=[HEAD], scale=0.5)
    for number, text in enumerate(PROMPTS[:COUNT]):
        prompt = messages.Prompt(text=text)
        for direction in ("INCREASE", "DECREASE", "BOTH"):
            request = messages.AttributeRequest(
                prompt=prompt,
                direction=messages.Direction.Value(f"DIRECTION_{direction}"),
                position_projection_top_k=2,
                neurons=neurons,
            )
            yield f"attribute {number} {direction}", stub.Attribute(request, timeout=SECONDS)
        changed = messages.AttributeRequest(prompt=prompt, generate=2, interventions=[zero, halved])
        yield f"attribute {number} changed", stub.Attribute(changed, timeout=SECONDS)
        sets = [messages.InterventionSet(interventions=[each]) for each in (zero, halved)]
        request = messages.InterveneRequest(prompt=prompt, sets=sets, generate=2)
        yield f"intervene {number}", stub.Intervene(request, timeout=SECONDS)
    for side in ("SUBVALUE", "SUBKEY"):
        request = messages.ProjectNeuronRequest(neurons=neurons, side=messages.NeuronSide.Value(f"NEURON_SIDE_{side}"))
        yield f"project {side}", stub.ProjectNeuron(request, timeout=SECONDS)
    through = messages.ProjectNeuronRequest(neurons=neurons[:1], through=HEAD)
    yield "project through a head", stub.ProjectNeuron(through, timeout=SECONDS)


@contextmanager
def served(model: str) -> Iterator[services.NeuronAttributionServiceStub]:
    """A server process, from whichever version is on the path."""
    with tempfile.TemporaryDirectory() as folder:
        source = model if model == "demo" else str(saved(Path(folder) / model, model))  # the name is part of answers
        command = [sys.executable, "-m", "neuron_attribution.cli.main", "serve", "--model", source]
        options = ["--listen", "localhost:0", "--cache-bytes", "0"]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("listening on ").strip()
            assert process.stdout.readline().startswith("ready"), f"the server ended with {process.poll()}"
            try:
                with grpc.insecure_channel(address) as channel:
                    yield services.NeuronAttributionServiceStub(channel)
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
