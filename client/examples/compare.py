"""What a head does to an addition: zero every head in turn, then compare the prediction with and without one of them.

neuron-attribution serve --model demo
python client/examples/compare.py [HOST:PORT]
"""

from __future__ import annotations

import sys

import numpy as np
from neuron_attribution import Client, Head, Intervention

PROMPT = "1+2=3\n2+4=6\n3+5="
DEEP = 15
"""Heads below this layer read the prompt's tokens; without them little is left to compare."""


def main() -> None:
    """Print the deep head that the answer needs most, and the neurons whose score changes most without it."""
    address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
    with Client(address, timeout=300) as client:
        effects = client.head_effects(PROMPT)
        layer, index = np.unravel_index(effects.changes[DEEP:].argmin(), effects.changes[DEEP:].shape)
        head = Head(DEEP + int(layer), int(index))
        print(f"{effects.target.token.text!r} has probability {effects.target.probability:.4f} after {PROMPT!r},")
        print(f"and {effects.probabilities[head.layer, head.head]:.4f} without head {head}")

        comparison = client.compare(PROMPT, interventions=[Intervention(heads=(head,))], top_k=5)
        for found in comparison.ffn_neurons.fell.neurons:
            words = " ".join(repr(item.token.text) for item in found.first.promoted[:5])
            print(f"{found.neuron!s:8} {found.first.score:8.4f} {found.second.score:8.4f}  promotes {words}")


if __name__ == "__main__":
    main()
