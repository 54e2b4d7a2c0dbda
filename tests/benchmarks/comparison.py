"""One table: who takes how long for which part of the answer, the same prompts one after another for all of them."""

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

import torch
from neuron_attribution.requests import ALL_PARTS, Part

from benchmarks import libraries, markdown, notebook
from benchmarks.brute_force import BruteForce
from benchmarks.subject import explanation
from benchmarks.timing import milliseconds, progress, settled, spread, timed

FORWARD, TOP_10, TOP_300, WITHOUT_POSITIONS, FFN_ALONE = (
    "plain forward",
    "ours, top 10",
    "ours, top 300",
    "ours, top 300, no head positions",
    "ours, FFN value neurons alone, top 10",
)
BRUTE_FORCE, SHARING, NOTEBOOK = (
    "chunked brute force",
    "brute force, one product for all positions",
    "published notebook",
)
GRADIENT, INTEGRATED, LENS = (
    "captum LayerGradientXActivation",
    "captum LayerIntegratedGradients",
    "TransformerLens stack_neuron_results",
)
TARGETS = (
    (TOP_10, FORWARD, 3.5, BRUTE_FORCE, 200),
    (TOP_300, FORWARD, 8, BRUTE_FORCE, 100),
)
LARGEST_SHARE = 0.01
SLOWEST = (NOTEBOOK, INTEGRATED)
OURS = "layers, heads, positions, FFN and attention neurons, query layers and neurons, projections"
COVERS = {
    FORWARD: ("nothing: logits only", "-"),
    TOP_10: (OURS, "exact"),
    TOP_300: (OURS, "exact"),
    WITHOUT_POSITIONS: (OURS.replace("positions, ", ""), "exact"),
    FFN_ALONE: ("FFN neurons", "exact"),
    BRUTE_FORCE: ("FFN and attention neurons", "exact, the reference"),
    SHARING: ("FFN and attention neurons", "exact, the reference"),
    NOTEBOOK: ("FFN and attention neurons", "exact"),
    GRADIENT: ("FFN neurons", "gradient at the actual state, another score"),
    INTEGRATED: ("FFN neurons", "path integral, another score"),
    LENS: ("FFN neurons", "logit without normalisation, another score"),
}


@dataclass
class Measured:
    """Seconds per competitor and prompt; overlaps of FFN rankings with the exact one, and what else was found."""

    seconds: dict = field(default_factory=lambda: defaultdict(dict))
    overlaps: dict = field(default_factory=lambda: defaultdict(list))
    scored: list = field(default_factory=list)
    checks: list = field(default_factory=list)
    full: dict = field(default_factory=lambda: defaultdict(list))

    def ratios(self, name, other):
        """One ratio for each prompt that both were measured on."""
        mine, others = self.seconds[name], self.seconds[other]
        return [mine[index] / others[index] for index in mine if index in others]


@dataclass(frozen=True)
class Plan:
    """How much is measured: prompts, those for the slowest, those in full, chunks of the sample."""

    prompts: int
    slowest: int
    in_full: int
    chunks: int


def measure(subject, plan):
    found = Measured()
    rivals = _rivals(subject)
    _warm_up(subject, rivals)
    for index, prompt in enumerate(subject.prompts[: plan.prompts]):
        progress(f"comparison: prompt {index + 1} of {plan.prompts}")
        _Prompt(subject, rivals, found, plan, index, prompt).run()
    return found


def report(found, plan, conditions):
    rows = [_row(found, name) for name in COVERS if found.seconds[name]]
    header = [
        "competitor", "time a prompt", "x plain forward", "x ours, top 10", "covers", "its score",
        "top 10 FFN neurons in common", "top 300",
    ]  # fmt: skip
    missing = "" if found.seconds[LENS] else "captum and TransformerLens are measured on the demo model only."
    return markdown.section(
        "Comparison",
        conditions,
        f"{plan.prompts} prompts, each explained for the model's own next token, everybody's turn on every prompt; "
        "median (least to largest) of the prompts, ratios per prompt. Projections of neurons are computed anew every "
        "time. Neurons in common are those shared with our exact ranking, which brute force confirms below.",
        markdown.table(header, rows),
        _sampling(found, plan),
        missing,
        _checks(found),
        "### Targets",
        markdown.table(["target", "measured (median)", "met"], _targets(found)),
    )


class _Prompt:
    """Everybody's turn on one prompt, starting with another competitor each time."""

    def __init__(self, subject, rivals, found, plan, index, prompt):
        self._subject, self._rivals, self._found, self._plan = subject, rivals, found, plan
        self._index, self._prompt = index, prompt
        self._ids = subject.tensor([prompt])
        self._target = subject.target(prompt)
        self._scores = {}

    def run(self):
        turns = {
            FORWARD: lambda: self._timed(FORWARD, lambda: self._subject.forward([self._prompt])),
            TOP_10: lambda: self._ours(TOP_10, 10),
            TOP_300: lambda: self._ours(TOP_300, 300),
            WITHOUT_POSITIONS: lambda: self._ours(WITHOUT_POSITIONS, 300, parts=ALL_PARTS - {Part.HEAD_POSITIONS}),
            FFN_ALONE: lambda: self._ours(FFN_ALONE, 10, parts=frozenset({Part.FFN_VALUE_NEURONS}), projection_top_k=0),
            BRUTE_FORCE: self._brute_force,
            SHARING: self._sharing_brute_force,
            NOTEBOOK: self._notebook,
        } | {name: lambda name=name: self._library(name) for name in self._rivals}
        names = [name for name in turns if self._index < self._plan.slowest or name not in SLOWEST]
        start = self._index % len(names)
        with settled():
            for name in names[start:] + names[:start]:
                turns[name]()
        self._compare()

    def _timed(self, name, call):
        result, seconds = timed(call)
        self._found.seconds[name][self._index] = seconds
        return result

    def _ours(self, name, k, **options):
        self._subject.forget()
        (outcome,) = self._timed(name, lambda: self._subject.attribute([self._prompt], top_k=k, **options))
        self._scores[name] = outcome

    def _brute_force(self):
        brute, setup = timed(lambda: BruteForce(self._subject.model, self._ids, self._target, shared=False))
        self._found.seconds[BRUTE_FORCE][self._index] = setup + brute.sampled_seconds(self._plan.chunks)

    def _sharing_brute_force(self):
        brute, setup = timed(lambda: BruteForce(self._subject.model, self._ids, self._target))
        if self._index < self._plan.in_full:
            progress("  brute force in full")
            self._exact, seconds = timed(brute.everything)
            self._found.full[SHARING].append(setup + seconds)
        else:
            seconds = brute.sampled_seconds(self._plan.chunks)
        self._found.seconds[SHARING][self._index] = setup + seconds

    def _notebook(self):
        layer = self._index % self._subject.sizes.layers
        seconds = notebook.sampled_seconds(self._subject.model, self._ids, self._target, layer)
        self._found.seconds[NOTEBOOK][self._index] = seconds

    def _library(self, name):
        method = self._rivals[name]
        if name != INTEGRATED or self._index < self._plan.in_full:
            self._scores[name] = self._timed(name, lambda: method.scores(self._ids, self._target))
            return
        layers = self._subject.sizes.layers
        layer = self._index % layers
        _, seconds = timed(lambda: method.layer_scores(self._ids, self._target, layer))
        self._found.seconds[name][self._index] = seconds * layers

    def _compare(self):
        outcome = self._scores[TOP_300]
        exact = explanation(outcome)
        self._found.scored.append(_share(exact))
        width = self._subject.sizes.ffn_width
        ids = [score.neuron.layer * width + score.neuron.index for score in exact.ffn_value_neurons.neurons]
        for name in self._rivals:
            if name in self._scores:
                ranked = self._scores[name].flatten().topk(len(ids)).indices.tolist()
                self._found.overlaps[name].append([_common(ranked, ids, k) for k in (10, 300)])
        if self._index < self._plan.in_full:
            self._found.checks.append(self._check(exact))

    def _check(self, exact):
        """Neurons common to our top 10 and 300 and brute force's, of both kinds; the largest difference of scores."""
        sizes = self._subject.sizes
        scores = {kind: values.flatten() for kind, values in self._exact.items()}
        positions = len(self._prompt)
        ours = {
            "ffn": [
                (s.neuron.layer * sizes.ffn_width + s.neuron.index, s.score) for s in exact.ffn_value_neurons.neurons
            ],
            "attention": [
                (
                    ((s.neuron.layer * sizes.heads + s.neuron.head) * sizes.head_size + s.neuron.index) * positions
                    + s.position,
                    s.score,
                )
                for s in exact.attention_value_neurons.neurons
            ],
        }
        commons, differences = [], []
        for kind, pairs in ours.items():
            ids = [each for each, _ in pairs]
            ranked = scores[kind].topk(len(ids)).indices.tolist()
            commons += [f"{kind} {_common(ranked, ids, k):.0%} of the top {k}" for k in (10, 300)]
            differences.append(
                float((scores[kind][ids].cpu() - torch.tensor([score for _, score in pairs])).abs().max())
            )
        return ", ".join(commons), max(differences)


def _rivals(subject):
    """captum and TransformerLens, where they are installed and the model has a folder to read."""
    if not libraries.INSTALLED or subject.folder is None:
        return {}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=torch.float32).eval()
    return {
        GRADIENT: libraries.GradientTimesActivation(subject.model),
        INTEGRATED: libraries.IntegratedGradients(subject.model),
        LENS: libraries.NeuronResults(subject.folder, own, AutoTokenizer.from_pretrained(subject.folder)),
    }


def _warm_up(subject, rivals):
    prompt = subject.prompts[-1]
    subject.forward([prompt])
    subject.attribute([prompt])
    for name in rivals:
        if name != INTEGRATED:
            rivals[name].scores(subject.tensor([prompt]), subject.target(prompt))


def _share(exact):
    """Neurons of both kinds scored, as a share of those that exist."""
    found = [exact.ffn_value_neurons.coverage, exact.attention_value_neurons.coverage]
    return sum(each.scored for each in found) / sum(each.neurons for each in found)


def _common(first, second, k):
    return len(set(first[:k]) & set(second[:k])) / len(second[:k])


def _row(found, name):
    seconds = list(found.seconds[name].values())
    covers, score = COVERS[name]
    overlaps = found.overlaps.get(name)
    both = [spread([100 * each[i] for each in overlaps], 2, "%") if overlaps else "-" for i in (0, 1)]
    if name in (TOP_10, TOP_300, WITHOUT_POSITIONS, FFN_ALONE, BRUTE_FORCE, SHARING):
        both = ["reference"] * 2
    to = [spread(found.ratios(name, other), 2) for other in (FORWARD, TOP_10)]
    return [name, milliseconds(seconds), *to, covers, score, *both]


def _targets(found):
    rows = []
    for name, forward, most, brute, least in TARGETS:
        slower = found.ratios(name, forward)
        faster = found.ratios(brute, name)
        rows += [
            _target(f"{name}: at most {most} x the {forward}", slower, lambda value, most=most: value <= most),
            _target(
                f"{name}: at least {least} x faster than {brute}", faster, lambda value, least=least: value >= least
            ),
        ]
    for rival in (GRADIENT, LENS):
        if found.seconds[rival]:
            faster = found.ratios(rival, FFN_ALONE)
            rows.append(_target(f"{FFN_ALONE}: faster than {rival} (x)", faster, lambda value: value > 1))
    shares = [100 * share for share in found.scored]
    return [
        *rows,
        _target("under 1 % of neurons scored at top 300 (in %)", shares, lambda value: value < 100 * LARGEST_SHARE),
    ]


def _target(name, values, holds):
    return [name, spread(values, 3), "yes" if holds(median(values)) else "no"]


def _sampling(found, plan):
    full = milliseconds(found.full[SHARING]) if found.full[SHARING] else "none"
    return (
        "Chunked brute force scores every FFN neuron, and every attention neuron at every source position, by a "
        "product of its own with the whole vocabulary. The other brute force is the fastest we could write: positions "
        f"share a neuron's product. It is measured in full on {plan.in_full} of the prompts ({full}); otherwise both "
        f"are extrapolated from {plan.chunks} of their chunks of each kind, evenly chosen. The notebooks' procedure is "
        f"written anew (notebook.py) and extrapolated on {plan.slowest} prompts from {notebook.ROWS} rows of each kind "
        "in one layer, another layer each prompt, and the sort of a whole list. LayerIntegratedGradients "
        f"({libraries.STEPS} steps, baseline token 0) goes layer by layer: in full on {plan.in_full} of the prompts, "
        f"extrapolated from one layer on {plan.slowest - plan.in_full} more. TransformerLens 4 has no "
        "HookedTransformer any more: its TransformerBridge around the same weights runs instead, and projects while it "
        "stacks. captum and TransformerLens rank FFN neurons only."
    )


def _checks(found):
    if not found.checks:
        return ""
    lines = [f"- {common}; scores differ by at most {difference:.1e}" for common, difference in found.checks]
    return "\n".join(["Our rankings against brute force in full, neurons in common:", "", *lines])
