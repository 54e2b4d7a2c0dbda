"""Evaluate a few facts as the paper does, and print how far each scoring method's ten neurons carry the right word.

    python client/examples/evaluate.py [HOST:PORT]

It needs a running server: neuron-attribution serve --model demo
"""

import json
import sys
import tempfile
from pathlib import Path

from neuron_attribution import Client
from neuron_attribution.evaluation.facts import read_facts
from neuron_attribution.evaluation.report import markdown
from neuron_attribution.evaluation.run import evaluate

FACTS = [
    {"prompt": "The capital of France is", "answer": "Paris", "type": "capital"},
    {"prompt": "People in Mexico speak", "answer": "Spanish", "type": "language"},
]


def main(address: str = "localhost:50051") -> None:
    """Write the facts, evaluate them, and print a line for each method."""
    with tempfile.TemporaryDirectory() as name, Client(address, timeout=300) as client:
        folder = Path(name)
        (folder / "facts.jsonl").write_text("".join(f"{json.dumps(fact)}\n" for fact in FACTS))
        report = evaluate(client, read_facts(folder / "facts.jsonl"), folder / "results")
    if not report["original"]:
        sys.exit(markdown(report))  # it says why
    print(f"original   log probability {report['original']['log_probability']['mean']:.2f}")
    for name, means in report["without"].items():
        print(f"without {name}: {means['log_probability']['mean']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
