"""Ask as a user would, find the neurons behind the whole wrong answer, and ask again with them zeroed.

    python client/examples/wrong_answer.py [HOST:PORT]

It needs a running server: neuron-attribution serve --model demo
"""

import sys

from neuron_attribution import Client

ASKED = [{"role": "user", "content": "What is the capital of Turkey? One word."}]
RIGHT = "The capital of Turkey is Ankara."


def main(address: str = "localhost:50051") -> None:
    """Print the answer, the ten neurons behind it rather than behind the right one, and the answer without them."""
    with Client(address) as client:
        said = client.attribute(messages=ASKED, generate=20, aggregate="sum", aggregate_only=True, parts=["layers"])
        answer = "".join(target.token.text for target in said.aggregate.targets).removesuffix("<|im_end|>")
        print(f"{ASKED[0]['content']!r}: {answer!r}")
        answers = {"completion": answer, "contrast_completion": RIGHT}
        result = client.attribute(messages=ASKED, **answers, aggregate="sum", aggregate_only=True)
        why = result.aggregate
        print(f"log probability {why.log_probability:.2f}, of {RIGHT!r} {why.contrast_log_probability:.2f}")
        tokens = [target.token.text for target in (*why.targets, *why.contrast_targets)]
        neurons = why.ranking("ffn_value_neurons").neurons
        for each in neurons:
            scores = each.token_scores
            most = max(range(len(tokens)), key=lambda place, scores=scores: abs(scores[place]))
            whose = "said" if most < len(why.targets) else "right"
            print(f"  {each.neuron!s:8} {each.score:5.2f}  {scores[most]:5.2f} at {tokens[most]!r} ({whose})")
        changed = client.intervene(messages=ASKED, zero=[each.neuron for each in neurons], generate=20)
        for name, state in (("as it is", changed.before), ("without them", changed.results[0].after)):
            print(f"{name}: {''.join(token.text for token in state.continuation)!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
