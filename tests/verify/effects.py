"""How well what is cheap to know ranks what neurons really do: gradients and frozen relevances beside measured effects.

    cd tests && python -m verify.effects [--screened 400]

The demo model, ten prompts, the neurons that pass a trace's screening, each zeroed at its position. Prints for every
prompt the rank correlation (Spearman's) of effects with the gradient of the real log odds times the activation, and
with relevances in the frozen linear model, by both subkeys. Exit status 1 where the gradient's median is below 0.85.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

import numpy as np
from neuron_attribution.requests import Subkey
from neuron_attribution.traces import Graph, TraceNode, TraceOptions
from neuron_attribution_server.model.engine.engine import Engine
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import ExplainedToken, TraceTask
from tokenizers import Tokenizer

LEAST = 0.85
PROMPTS = (
    "The capital of France is",
    "Tim Duncan plays the sport of",
    "The official language of Mexico is",
    "Kenya is a country on the continent of",
    "The capital of Japan is",
    "Monday, Tuesday, Wednesday,",
    "The opposite of hot is",
    "Madrid is the capital of",
    "Two plus two equals",
    "The chemical symbol for gold is",
)


def graph_of(engine: Engine, token_ids: Sequence[int], screened: int, subkey: Subkey, *, measure: bool = True) -> Graph:
    """All neurons that pass the screening."""
    options = TraceOptions(
        nodes=screened, screened=screened, subkey=subkey, measure=measure, projection_top_k=0, edge_share=1e-9
    )
    explained = (ExplainedToken(len(token_ids) - 1),)
    (outcome,) = engine.run([TraceTask(token_ids=tuple(token_ids), explained=explained, options=options)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.graph


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(each)) for each in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def neurons(graph: Graph) -> list[TraceNode]:
    """The FFN neurons of a graph."""
    return [node for node in graph.nodes if node.neuron is not None]


def main() -> int:
    """Print a line for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screened", type=int, default=400)
    screened = parser.parse_args().screened
    engine = load_engine(LoadSettings("demo"))
    tokenizer = Tokenizer.from_file(str(demo_folder() / "tokenizer.json"))
    found = []
    print(f"{'prompt':42} gradient  up    gate")
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        graph = graph_of(engine, ids, screened, Subkey.UP)
        measured = neurons(graph)
        by_gate = {
            (node.neuron, node.position): node.relevance
            for node in neurons(graph_of(engine, ids, screened, Subkey.GATE, measure=False))
        }
        effects = [node.effect or 0.0 for node in measured]
        gradients = [node.gradient or 0.0 for node in measured]
        gates = [by_gate[node.neuron, node.position] for node in measured]
        columns = gradients, [node.relevance for node in measured], gates
        found.append([rank_correlation(effects, column) for column in columns])
        print(f"{prompt:42} {found[-1][0]:.3f}    {found[-1][1]:.3f} {found[-1][2]:.3f}")
    medians = [median(column) for column in zip(*found, strict=True)]
    print(f"{'median':42} {medians[0]:.3f}    {medians[1]:.3f} {medians[2]:.3f}")
    return int(medians[0] < LEAST)


if __name__ == "__main__":
    sys.exit(main())
