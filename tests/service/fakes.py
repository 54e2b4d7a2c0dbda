"""A small deterministic engine and its tokenizer: the front end's tests need no model."""

import os
import threading
import time
from dataclasses import replace

from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.neurons import FfnNeuron
from neuron_attribution.requests import ALL_PARTS, Part
from neuron_attribution.results import (
    AggregateExplanation,
    Exactness,
    Explanation,
    InterventionResult,
    Invariant,
    ModelIdentity,
    ModelSizes,
    NeuronProjection,
    PredictionState,
    ProjectedToken,
    Projection,
    Token,
    TokenPrediction,
)
from neuron_attribution.traces import Graph, TraceCoverage, TraceEdge, TraceNode, TraceNodeKind
from neuron_attribution_server.tasks.answers import AttributeOutcome, InterveneOutcome, ProjectOutcome, TraceOutcome
from neuron_attribution_server.tasks.costs import MemoryCost
from neuron_attribution_server.tasks.model_facts import ModelFacts
from neuron_attribution_server.tasks.running import WARM_UP
from neuron_attribution_server.tasks.tasks import AttributeTask, ProjectTask, TraceTask
from neuron_attribution_server.tasks.tokenizer import ExactTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ("The", " capital", " of", " France", " is", " Paris", " Rome", "ian", " crash", " refuse", " die")
BATCH_SECONDS = 0.1
DYING_SECONDS = 1.5
PROMPT = "The capital of France is"
SIZES = ModelSizes(layers=2, heads=4, key_value_heads=2, head_size=8, ffn_width=64, hidden_size=32, vocabulary=512)
ALL_BUT_QUERY_NEURONS = tuple(part for part in Part if part in ALL_PARTS - {Part.QUERY_FFN_NEURONS})


def byte_level_tokenizer() -> str:
    """The JSON of a byte-level BPE tokenizer that knows WORDS and puts <bos> first."""
    vocabulary = ["<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in WORDS:
        symbols = word.replace(" ", "Ġ")
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in vocabulary:
                vocabulary.append(symbols[:end])
                merges.append((symbols[: end - 1], symbols[end - 1]))
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return tokenizer.to_str()


FACTS = ModelFacts(
    identity=ModelIdentity("fake", "revision-1", "float32"),
    family="fake",
    device="cpu",
    sizes=SIZES,
    maximum_tokens=64,
    supported_parts=ALL_BUT_QUERY_NEURONS,
    exactness=Exactness(True, "every layer is linear in its neurons"),
    invariants=(Invariant("sum", "the parts make the whole", 1e-7, 1e-4),),
    tokenizer=byte_level_tokenizer(),
    memory=MemoryCost(available=1000, per_token=1, per_row_token=8),
)
TOKENIZER = ExactTokenizer(FACTS.tokenizer)
CRASH, REFUSE, DIE = (TOKENIZER.token_named(text, "text") for text in (" crash", " refuse", " die"))


class FakeEngine:
    """Explains every token with probability one half. Some tokens make it fail; `hold` keeps a batch running."""

    def __init__(self):
        self.loadable = threading.Event()
        self.loadable.set()
        self.started = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self.batches = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Let go of everything, so that a failed test ends instead of hanging."""
        self.loadable.set()
        self.released.set()

    @property
    def facts(self):
        self.loadable.wait()
        return FACTS

    def hold(self):
        """Keep the next batches running until `released` is set; `started` is set when the first of them runs."""
        self.started.clear()
        self.released.clear()

    def run(self, tasks):
        self.batches.append(list(tasks))
        self.started.set()
        self.released.wait()
        return [_outcome(task, tasks) for task in tasks]


def _outcome(task, tasks):
    if isinstance(task, ProjectTask):
        projection = Projection((ProjectedToken(Token(1, "!"), 2.0),), ())
        return ProjectOutcome(tuple(NeuronProjection(neuron, projection) for neuron in task.neurons))
    if DIE in task.token_ids:
        os._exit(3)
    if CRASH in task.token_ids:
        raise KeyError("a secret of the engine")
    if REFUSE in task.token_ids:
        return FailedPreconditionError("this model cannot")
    shared = {"forward": 0.25, "scoring": 0.5, "started": time.time()}
    shared |= {"batch_requests": len(tasks), "batch_tokens": sum(task.tokens for task in tasks)}
    if isinstance(task, TraceTask):
        return TraceOutcome(token_ids=task.token_ids, graph=_graph(task), **shared)
    if not isinstance(task, AttributeTask):
        state = PredictionState(TokenPrediction(TOKENIZER.token(task.target or 0), 0.5, -0.6931472, 1), ())
        return InterveneOutcome(state, tuple(InterventionResult(state, 0.25) for _ in task.sets), **shared)
    return AttributeOutcome(
        token_ids=task.token_ids,
        explanations=() if task.options.aggregate_only else _explanations(task),
        aggregate=_aggregate(task) if task.options.aggregate else None,
        bound=0.125,
        exact=0.0625,
        **shared,
    )


def _graph(task):
    """The last token, by one neuron and by itself, and the biases of a layer."""
    last = len(task.token_ids) - 1
    neuron = TraceNode(TraceNodeKind.FFN_NEURON, 2.0, 1.0, FfnNeuron(1, 3), last, effect=0.5, gradient=0.25)
    return Graph(
        positions=tuple(each.position for each in task.explained),
        targets=tuple(_explanation(0, each.target or 0).target for each in task.explained),
        contrasts=tuple(_explanation(0, task.contrast).target for _ in task.explained) if task.contrast else (),
        output=4.0,
        log_odds=3.5,
        nodes=(
            TraceNode(TraceNodeKind.OUTPUT, 4.0, 4.0, other=0.5),
            neuron,
            TraceNode(TraceNodeKind.TOKEN, 1.0, 2.0, position=last),
            TraceNode(TraceNodeKind.BIAS, 1.0, 0.5, layer=0),
        ),
        edges=(
            TraceEdge(2, 0, 2.0, 0.5),
            TraceEdge(1, 0, 1.0, 0.25),
            TraceEdge(3, 0, 0.5, 0.125),
            TraceEdge(2, 1, 2.0, 1.0),
        ),
        coverage=TraceCoverage(128, task.screened, task.screened, 0.875, 0.875, 0.9),
    )


def _explanations(task):
    return tuple(_explanation(explained.position, explained.target or 0) for explained in task.explained)


def _aggregate(task):
    every = _explanations(task)
    others = tuple(_explanation(0, token).target for token in task.contrast_answer)
    positions = tuple(each.position for each in every)
    targets = tuple(each.target for each in every)
    return AggregateExplanation(task.options.aggregate, -0.6931472, positions, targets, contrast_targets=others)


def _explanation(position, target):
    return Explanation(position, TokenPrediction(TOKENIZER.token(target), 0.5, -0.6931472, 1))


def make_engine():
    """An engine for a worker process."""
    return FakeEngine()


class TimedEngine(FakeEngine):
    """Every batch takes the same time, and none is remembered."""

    def run(self, tasks):
        time.sleep(BATCH_SECONDS)
        return [_outcome(task, tasks) for task in tasks]


def make_timed_engine():
    """An engine for a worker process whose capacity is known."""
    return TimedEngine()


def fail_to_load():
    """What a worker process finds when the model does not exist."""
    raise OSError("no such model:\n'nowhere' is neither a folder\nnor on the Hub")


def die_while_loading():
    """What a worker process killed for memory looks like."""
    os._exit(9)


def hang_while_loading():
    """A load that takes longer than anybody waits."""
    threading.Event().wait()


class UnsendableEngine(FakeEngine):
    """Its outcomes, but for the first task that warms it up, cannot be pickled."""

    def run(self, tasks):
        return super().run(tasks) if WARM_UP in tasks else [lambda: None for _ in tasks]


def make_unsendable_engine():
    """An engine for a worker process whose outcomes stay there."""
    return UnsendableEngine()


class HarmlessEngine(FakeEngine):
    """No token makes it fail: for requests that are made up, where any failure is the front end's."""

    def run(self, tasks):
        return super().run([_without_magic(task) for task in tasks])


def _without_magic(task):
    if isinstance(task, ProjectTask):
        return task
    return replace(task, token_ids=tuple(0 if id in (CRASH, REFUSE, DIE) else id for id in task.token_ids))


class SlowlyDyingEngine(FakeEngine):
    """Closes every file at its first batch and lives on for a while, as a process does that lets go of a GPU."""

    def run(self, tasks):
        if tasks[0].token_ids == (DIE,):
            os.closerange(3, 1024)
            time.sleep(DYING_SECONDS)
            os._exit(3)
        return super().run(tasks)


def make_slowly_dying_engine():
    """An engine for a worker process."""
    return SlowlyDyingEngine()
