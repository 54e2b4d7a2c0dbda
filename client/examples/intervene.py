"""Ask which heads say a token, take them away one by one and together, and see what the model says then.

    python client/examples/intervene.py [HOST:PORT]

It needs a running server: neuron-attribution serve --model demo
"""

import sys

from neuron_attribution import Client, Intervention

PROMPT = "The capital of France is"


def main(address: str = "localhost:50051") -> None:
    """Zero the four strongest heads, and print what becomes of the prediction."""
    with Client(address) as client:
        explanation = client.attribute(PROMPT, parts=["heads", "head-positions"], head_top_k=4).explanations[0]
        heads = tuple(score.head for score in explanation.heads)
        sets = [[Intervention(heads=(head,))] for head in heads] + [[Intervention(heads=heads)]]
        result = client.intervene(PROMPT, sets, generate=4)
        print(f"{PROMPT!r}: {result.before.target.token.text!r} {result.before.target.probability:.4f}")
        for name, each in zip([*map(str, heads), "all of them"], result.results, strict=True):
            target, text = each.after.target, "".join(token.text for token in each.after.continuation)
            print(f"  without {name:12}{target.probability:.4f}  KL {each.kl_divergence:.4f}  goes on {text!r}")
        without = client.attribute(PROMPT, target=explanation.target.token.text, interventions=sets[-1], head_top_k=4)
        print("  heads that say it then:", *(str(score.head) for score in without.explanations[0].heads))


if __name__ == "__main__":
    main(*sys.argv[1:])
