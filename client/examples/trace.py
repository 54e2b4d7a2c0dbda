"""Follow a prediction back to the prompt's tokens: the paths that carry most, and what zeroing their neurons does.

    python client/examples/trace.py [HOST:PORT]

It needs a running server: neuron-attribution serve --model demo
"""

import sys

from neuron_attribution import Client, TraceNode, TraceNodeKind

PROMPT = "The capital of France is"


def main(address: str = "localhost:50051") -> None:
    """Trace a prompt, and print its strongest paths and neurons."""
    with Client(address) as client:
        trace = client.trace(PROMPT, target=" Paris", nodes=50)
    graph = trace.graph

    def name(node: TraceNode) -> str:
        if node.kind is TraceNodeKind.TOKEN and node.position is not None:
            return repr(trace.tokens[node.position].text)
        return node.name

    print(f"{PROMPT!r}: log odds of ' Paris' {graph.log_odds:.2f}, in the frozen linear model {graph.output:.2f}")
    for path in graph.paths(5):
        print(f"  {path.contribution:8.4f}  ", " -> ".join(name(graph.nodes[index]) for index in path.nodes))
    for node in graph.nodes[1:6]:
        print(f"  zeroing {node.name:10} takes {node.effect:7.4f}; the frozen model gives it {node.relevance:7.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
