"""Studies to look at: a fast model with neurons, corpora, and the command as a person runs it."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.results import (
    Coverage,
    Explanation,
    HeadScore,
    LayerScores,
    NeuronRanking,
    NeuronScore,
    ProjectedToken,
    Projection,
    PromotedSide,
    Token,
    TokenPrediction,
)
from neuron_attribution_server.front_end.workers.thread import ThreadWorker
from neuron_attribution_server.tasks.answers import AttributeOutcome
from service.fakes import REFUSE, SIZES, TOKENIZER, FakeEngine
from service.servers import running_server

PATIENCE = 60
TOP_K = 12
TYPES = ("language", "capital", None)
COMMAND = [sys.executable, "-m", "neuron_attribution.cli.main"]


class StudiedEngine(FakeEngine):
    """Explains by the prompt's tokens alone, at its own pace. After `limit` batches it waits until `released`."""

    def __init__(self, facts=None):
        super().__init__()
        self._own_facts = facts
        self.limit = None
        self.reached = threading.Event()
        self.refuses = True

    @property
    def facts(self):
        return self._own_facts or super().facts

    def hold_after(self, batches):
        """Wait once that many more batches have run."""
        self.reached.clear()
        self.released.clear()
        self.limit = len(self.batches) + batches

    def run(self, tasks):
        if self.limit is not None and len(self.batches) >= self.limit:
            self.reached.set()
            self.released.wait()
        time.sleep(random.uniform(0, 0.02))
        self.batches.append(list(tasks))
        return [self._explained(task, tasks) for task in tasks]

    def _explained(self, task, tasks):
        if self.refuses and REFUSE in task.token_ids:
            return FailedPreconditionError("this model cannot")
        explanations = tuple(explanation(task.token_ids, each) for each in task.explained)
        return AttributeOutcome(task.token_ids, explanations, 0.25, 0.5, len(tasks), sum(t.tokens for t in tasks))


def explanation(ids, explained):
    """Made up from the tokens; some neurons come often, as in a real model."""
    chance = random.Random(f"{ids} {explained.position}")
    target = TOKENIZER.token(chance.randrange(200) if explained.target is None else explained.target)
    heads = np.array([[chance.gauss(0, 1) for _ in range(SIZES.heads)] for _ in range(SIZES.layers)], np.float32)
    strongest = sorted(np.ndindex(heads.shape), key=lambda place: -heads[place])[:3]
    weights = np.full(explained.position + 1, 0.25, np.float32)
    return Explanation(
        explained.position,
        TokenPrediction(target, 0.5, -0.6931472, 1),
        predictions=(TokenPrediction(target, 0.5, -0.6931472, 1),),
        layers=LayerScores(*np.array([[chance.random(), chance.random()] for _ in "af"], np.float32), -4.0, -0.5, 0.0),
        head_scores=heads,
        heads=tuple(HeadScore(Head(*place), float(heads[place]), weights, weights) for place in strongest),
        ffn_value_neurons=ranking(chance, lambda: FfnNeuron(chance.randrange(2), chance.randrange(20))),
        attention_value_neurons=ranking(
            chance, lambda: AttentionNeuron(chance.randrange(2), chance.randrange(4), chance.randrange(8)), position=0
        ),
        query_ffn_neurons=ranking(chance, lambda: FfnNeuron(0, chance.randrange(30), chance.randrange(2)), query=True),
    )


def ranking(chance, neuron, position=None, query=False):
    neurons = []
    while len(neurons) < TOP_K:
        found = neuron()
        if found not in neurons:
            neurons.append(found)
    scores = sorted((chance.expovariate(1) for _ in neurons), reverse=True)
    return NeuronRanking(
        tuple(
            NeuronScore(
                each,
                score,
                position,
                None if query else chance.choice((-1.5, 2.5)),
                projection_of(each),
                PromotedSide.UNKNOWN if query else chance.choice((PromotedSide.TOP, PromotedSide.BOTTOM)),
            )
            for each, score in zip(neurons, scores, strict=True)
        ),
        Coverage(128, 128, 20, True),
    )


def projection_of(neuron):
    first, second = (Token(neuron.index + offset, f" token {neuron.index + offset}|`\n") for offset in (1, 2))
    return Projection((ProjectedToken(first, 2.0),), (ProjectedToken(second, -2.0),))


@contextmanager
def served(engine=None):
    """The address of a service with the fast model."""
    engine = engine or StudiedEngine()
    with running_server(ThreadWorker(engine), batch_requests=4, cache_bytes=0) as server, engine:
        assert server.loaded.wait(PATIENCE)
        yield server.address


def with_revision(revision):
    facts = FakeEngine().facts
    return StudiedEngine(replace(facts, identity=replace(facts.identity, revision=revision)))


def corpus(path, prompts=100):
    """JSON lines of prompts with types and answers."""
    rows = [
        {"prompt": f"Fact {number} of", "id": f"fact-{number}", "type": TYPES[number % 3], "answer": "Paris"}
        for number in range(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(prompts, folder, address, *options):
    return [*COMMAND, "analyze", str(prompts), "--output", str(folder), "--address", address, *options]


def analyze(prompts, folder, address, *options):
    """The finished command."""
    words = command(prompts, folder, address, "--top-k", str(TOP_K), "--shard-prompts", "8", *options)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment())


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("NEURON_ATTRIBUTION_")}


def contents(folder):
    """The bytes of every file that two studies have in common: all but times and versions."""
    left_out = {"conditions.json", ".lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out and path.parent.name != "timings"
    }
