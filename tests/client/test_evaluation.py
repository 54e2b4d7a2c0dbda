"""The evaluation but for its numbers: facts, eligibility, results that survive an interruption, and the report."""

import json
import random
import resource
import time
from dataclasses import replace

import pytest
from client.fake_service import EXPLANATION, INFO
from neuron_attribution import (
    Client,
    FailedPreconditionError,
    FfnNeuron,
    InternalError,
    InvalidArgumentError,
    ScoringMethod,
    UnavailableError,
)
from neuron_attribution.analysis.atomic_files import held
from neuron_attribution.cli.main import main
from neuron_attribution.evaluation import protocol
from neuron_attribution.evaluation.facts import Fact, FactsError, read_facts
from neuron_attribution.evaluation.random_neurons import RandomNeurons
from neuron_attribution.evaluation.report import TABLES, markdown, report_of
from neuron_attribution.evaluation.rows import Measured, Row, RowFile
from neuron_attribution.evaluation.run import SETTINGS, chosen_facts, evaluate
from neuron_attribution.transport import status

from client import fake_service

ELIGIBLE, LOW, BEATEN = (
    Fact("The sky is", "blue", "color"),
    Fact("low", "blue", "color"),
    Fact("beaten", "red", "color"),
)


@pytest.fixture
def facts_file(tmp_path):
    def write(*lines):
        path = tmp_path / "facts.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    return write


def test_both_kinds_of_files_are_read_each_fact_once(facts_file):
    rome = {"known_id": 3, "relation_id": "P449", "subject": "CSI", "attribute": "CBS", "prompt": "CSI premieres on"}
    ours = {"type": "language", "subject": "Mexico", "answer": " Spanish", "prompt": "People in Mexico speak"}
    assert read_facts(facts_file(rome, "", ours, rome)) == [
        Fact("CSI premieres on", "CBS", "P449"),
        Fact("People in Mexico speak", "Spanish", "language"),
    ]


def test_only_a_line_break_ends_a_line(facts_file):
    odd = {"prompt": "a\u2028b\u2029c\x85d", "answer": "e"}
    assert read_facts(facts_file(json.dumps(odd, ensure_ascii=False))) == [Fact(odd["prompt"], "e", "")]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ((), "holds no facts"),
        (({"prompt": "a", "answer": "b"}, "{"), "line 2"),
        (({"prompt": "a"},), "line 1: needs a text as prompt, and one as answer or attribute"),
        ((["prompt"],), "line 1"),
        (({"prompt": "", "answer": "b"},), "line 1: needs"),
        (('{"prompt": "a \\ud800", "answer": "b"}',), "line 1: holds half of a character"),
        (("[" * 100_000,), "line 1"),
    ],
)
def test_what_is_no_fact_is_named(facts_file, lines, complaint):
    with pytest.raises(FactsError, match=complaint):
        read_facts(facts_file(*lines))


def test_a_larger_sample_contains_a_smaller_one():
    facts = [Fact(str(number), "x", "y") for number in range(30)]
    small, large = chosen_facts(facts, 5, 7), chosen_facts(facts, 12, 7)
    assert large[:5] == small
    assert chosen_facts(facts, None, 7) == facts
    assert chosen_facts(facts, 5, 8) != small


def test_random_neurons_exist_and_repeat():
    sizes = replace(INFO.sizes, experts=3, expert_width=4)
    neurons = RandomNeurons(sizes)
    every = neurons.ffn(random.Random(1), 10_000)
    assert len(set(every)) == len(every) == sizes.layers * (sizes.ffn_width + 12)
    assert {neuron.layer for neuron in every} == {0, 1}
    assert {neuron.index for neuron in every if neuron.expert is None} == set(range(sizes.ffn_width))
    assert {(neuron.expert, neuron.index) for neuron in every if neuron.expert is not None} == {
        (expert, index) for expert in range(3) for index in range(4)
    }
    attention = neurons.attention(random.Random(1), 10_000)
    assert len(set(attention)) == sizes.layers * sizes.heads * sizes.head_size
    assert neurons.ffn(random.Random(3), 5) == neurons.ffn(random.Random(3), 5)
    assert all(isinstance(neuron, FfnNeuron) for neuron in every)


def test_what_is_drawn_again_does_not_depend_on_the_order_of_refusals():
    """A dense first layer, beside experts with a narrower shared one."""
    sizes = replace(INFO.sizes, layers=9, ffn_width=64, experts=3, expert_width=16)

    def exists(neuron):
        return neuron.layer == 0 if neuron.expert is None and neuron.index >= 16 else neuron.layer or not neuron.expert

    def drawn(order):
        neurons = RandomNeurons(sizes)
        refusals = 0
        while refused := [each for each in neurons.ffn(random.Random(1), 100) if not exists(each)]:
            neurons.refused(refused[order])
            refusals += 1
        return neurons.ffn(random.Random(1), 100), refusals

    first, refusals = drawn(0)
    assert first == drawn(-1)[0]
    assert len(set(first)) == 100
    assert refusals < 60


class AnsweringService(fake_service.FakeService):
    """Knows the word of one fact, and of another a word of its type better; the third has a low rank."""

    def Attribute(self, request, context):
        answer = super().Attribute(request, context)
        if request.prompt.text == "low":
            answer.explanations[0].target.rank = 11
        if request.prompt.text == "beaten":
            answer.explanations[0].target.rank = 2
            answer.explanations[0].target.token.id = 99
        return answer

    def Tokenize(self, request, context):
        """The first token of every answer is the one that is predicted, but for that of `beaten`."""
        answer = super().Tokenize(request, context)
        answer.tokens[0].token.id = 99 if request.text == " red" else EXPLANATION.target.token.id
        return answer


@pytest.fixture
def service():
    return AnsweringService()


def rows(folder):
    return {row.prompt: row for row in RowFile(folder / "results.jsonl").rows}


def test_facts_are_eligible_by_rank_and_by_the_words_of_their_type(address, service, tmp_path):
    with Client(address) as client:
        report = evaluate(client, [ELIGIBLE, LOW, BEATEN], tmp_path)
    assert report["facts"] == {"all": 3, "eligible": 1, "ineligible": 2}
    found = rows(tmp_path)
    assert {prompt: row.reason for prompt, row in found.items() if row.status != "eligible"} == {
        "low": "the right token has rank 11",
        "beaten": "' blue' of its type is above the right token",
    }
    asked = [request for request in service.requests if getattr(request, "prompt", "") == "The sky is"]
    methods = {request.options.scoring_method for request in asked if hasattr(request, "options")}
    assert methods == set(ScoringMethod)
    [intervened] = [request for request in asked if hasattr(request, "sets")]
    assert len(intervened.sets) == len(found["The sky is"].without) == 8 + 1 + 2 + 2


def test_it_goes_on_where_it_stopped(address, service, tmp_path):
    """What is done is not asked again; a line that was cut off is dropped."""
    with Client(address) as client:
        evaluate(client, [LOW], tmp_path)
        before = len(service.requests)
        with (tmp_path / "results.jsonl").open("a") as file:
            file.write('{"key": "cut o')
        report = evaluate(client, [LOW, ELIGIBLE], tmp_path)
        assert report["facts"] == {"all": 2, "ineligible": 1, "eligible": 1}
        assert "low" not in {getattr(request, "prompt", "") for request in service.requests[before:]}
        after = len(service.requests)
        assert evaluate(client, [LOW, ELIGIBLE], tmp_path) == report
        assert len(service.requests) == after + 1, "the model is asked for, and nothing else"


def test_rows_hold_any_text_and_may_be_cut_anywhere(tmp_path):
    rows = [Row(str(number), "a\u2028b\u2029c\x85d 天", "e", "", "ineligible") for number in range(2)]
    for row in rows:
        RowFile(tmp_path / "rows").add(row)
    assert RowFile(tmp_path / "rows").rows == rows
    written = (tmp_path / "rows").read_bytes()
    (tmp_path / "rows").write_bytes(written[: written.rindex("天".encode()) + 1])
    assert RowFile(tmp_path / "rows").rows == rows[:1]
    assert (tmp_path / "rows").read_bytes() == written[: len(written) // 2]


def test_no_row_is_lost_where_the_disk_is_full(tmp_path):
    """The line that was cut off goes; nothing is written for it."""
    path = tmp_path / "rows"
    rows = [Row(str(number), "a", "e", "", "ineligible") for number in range(200)]
    for row in rows:
        RowFile(path).add(row)
    with path.open("a") as file:
        file.write('{"key": "cut o')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        assert RowFile(path).rows == rows
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert RowFile(path).rows == rows


def test_two_evaluations_at_once_are_refused(address, tmp_path):
    with held(tmp_path, "evaluation", SETTINGS), Client(address) as client:
        with pytest.raises(FailedPreconditionError, match="another evaluation writes to"):
            evaluate(client, [LOW], tmp_path)
        assert not (tmp_path / SETTINGS).exists()


@pytest.mark.parametrize("damaged", ["", '{"seed": ', "[]"])
def test_a_damaged_folder_is_named(address, tmp_path, damaged):
    (tmp_path / SETTINGS).write_text(damaged)
    with Client(address) as client, pytest.raises(FailedPreconditionError, match=f"{SETTINGS} is damaged"):
        evaluate(client, [LOW], tmp_path)


def test_intervals_do_not_depend_on_the_order_in_which_facts_are_done(address, tmp_path):
    facts = [replace(ELIGIBLE, prompt=f"Fact {number} is") for number in range(12)]
    rows = [
        replace(measured_row(number, 1 + number, 1 / (2 + number)), key=fact.key) for number, fact in enumerate(facts)
    ]
    reports = []
    with Client(address) as client:
        for number, order in enumerate((rows, rows[::-1])):
            (tmp_path / str(number)).mkdir()
            with held(tmp_path / str(number), "evaluation", SETTINGS):
                for row in order:
                    RowFile(tmp_path / str(number) / "results.jsonl").add(row)
            reports.append(evaluate(client, facts, tmp_path / str(number)))
    assert reports[0] == reports[1]
    mrr = reports[0]["original"]["mrr"]
    assert mrr["low"] < mrr["mean"] < mrr["high"]


def test_a_failure_is_recorded_and_tried_again(address, service, tmp_path, monkeypatch):
    with Client(address) as client:
        with monkeypatch.context() as patched:
            patched.setattr(client, "intervene", lambda *_, **__: _fail())
            report = evaluate(client, [ELIGIBLE], tmp_path)
        assert report["facts"] == {"all": 1, "failed": 1}
        assert report["failures"] == {"OUT_OF_MEMORY: too much": 1}
        page = (tmp_path / "report.md").read_text()
        assert "0 eligible" in page
        assert "- 1 failed: OUT_OF_MEMORY: too much" in page
        assert rows(tmp_path)["The sky is"].reason == "OUT_OF_MEMORY: too much"
        assert evaluate(client, [ELIGIBLE], tmp_path)["facts"] == {"all": 1, "eligible": 1}


class UnevenService(AnsweringService):
    """Its first layer is half as wide as the other one, in its FFN and in each head.

    It refuses one neuron at a time, as the real one does.
    """

    def Intervene(self, request, context):
        for number, one in enumerate(request.sets):
            for place, neuron in enumerate(one.interventions[0].neurons):
                each, width = (
                    (neuron.ffn, INFO.sizes.ffn_width)
                    if neuron.HasField("ffn")
                    else (neuron.attention, INFO.sizes.head_size)
                )
                if each.layer == 0 and each.index >= width // 2:
                    field = f"sets[{number}].interventions[0].neurons[{place}]"
                    error = InvalidArgumentError.of(field, "does not exist", reason="OUT_OF_RANGE")
                    context.set_trailing_metadata(status.trailing_metadata(error))
                    context.abort(status.status_code(error), status.public_message(error))
        return super().Intervene(request, context)


def test_random_neurons_that_a_narrow_layer_lacks_are_drawn_again(tmp_path, monkeypatch):
    """The same ones take their place whatever was learned before."""
    other = replace(ELIGIBLE, prompt="The sea is")
    accepted = []
    for number, facts in enumerate(([ELIGIBLE, other], [other, ELIGIBLE])):
        service = UnevenService()
        with fake_service.serving(service) as address, Client(address) as client:
            report = evaluate(client, facts, tmp_path / str(number))
        assert report["facts"] == {"all": 2, "eligible": 2}
        accepted.append({each.prompt: each.sets for each in service.requests if hasattr(each, "sets")})
    assert accepted[0] == accepted[1]
    assert 10 in [len(each[0].neurons) for each in accepted[0]["The sky is"]]
    monkeypatch.setattr(protocol, "ATTEMPTS", 1)
    with fake_service.serving(UnevenService()) as address, Client(address) as client:
        assert evaluate(client, [ELIGIBLE], tmp_path / "bounded")["facts"] == {"all": 1, "failed": 1}


def _fail():
    raise UnavailableError("too much", reason="OUT_OF_MEMORY")


def test_an_interruption_ends_it_at_once_and_keeps_what_is_done(address, service, tmp_path):
    """Of the second fact one call is under way, and is not waited for."""

    def interrupt():
        service.delay = 20
        raise KeyboardInterrupt

    before = time.monotonic()
    service.delay = 0.1
    with Client(address) as client, pytest.raises(KeyboardInterrupt):
        evaluate(client, [LOW, ELIGIBLE], tmp_path, progressed=interrupt)
    assert time.monotonic() - before < 15
    assert list(rows(tmp_path)) == ["low"]
    service.delay = 0
    with Client(address) as client:
        assert evaluate(client, [LOW, ELIGIBLE], tmp_path)["facts"] == {"all": 2, "ineligible": 1, "eligible": 1}


def test_another_evaluations_folder_is_left_alone(address, tmp_path):
    with Client(address) as client:
        evaluate(client, [LOW], tmp_path)
        with pytest.raises(FactsError, match="another evaluation: other seed; give"):
            evaluate(client, [LOW], tmp_path, seed=1)
        with pytest.raises(FactsError, match="another evaluation: other words; give"):
            evaluate(client, [LOW, BEATEN], tmp_path)
        assert evaluate(client, [LOW, ELIGIBLE], tmp_path)["facts"]["all"] == 2, "more facts about the same words"


def measured_row(number, rank, probability):
    original = Measured(probability, -1.0, rank)
    names = [name for table in TABLES.values() for name in table]
    without = {name: Measured(probability / 2, -2.0, 2 * rank) for name in names}
    layers = {"FFN value": {0: 1, 1: 3}}
    facts = (str(number), "p", "a", f"type {number % 2}", "eligible", "")
    return Row(*facts, original, without, 1.0 + number, 2.0, layers)


def test_the_report_has_means_intervals_and_changes():
    eligible = [measured_row(0, 1, 0.5), measured_row(1, 4, 0.1)]
    report = report_of([*eligible, Row("x", "", "", "", "ineligible")], {"seed": 0})
    assert report["facts"] == {"all": 3, "eligible": 2, "ineligible": 1}
    assert report["original"]["mrr"] == {"mean": 0.625, "low": 0.25, "high": 1.0}
    assert report["original"]["probability"]["mean"] == pytest.approx(30)
    assert report["without"]["a"]["mrr"]["mean"] == pytest.approx(0.3125)
    assert report["sums"]["all"] == {"facts": 2, "attention": 1.5, "ffn": 2.0}
    assert report["sums"]["type 1"]["attention"] == 2.0
    assert report["layers"] == {"FFN value": {0: 25.0, 1: 75.0}}
    page = markdown(report)
    assert "| original | 0.625 (0.250 to 1.000) | 30.0 (10.0 to 50.0) | -1.00 (-1.00 to -1.00) | +0.0 % |" in page
    assert "| h coefficient-reciprocal-rank | 0.312" in page
    assert "-50.0 %" in page
    assert "- FFN value: layer 1 75.0, layer 0 25.0" in page


class Refusing(AnsweringService):
    """Cannot explain anything."""

    def Attribute(self, request, context):
        context.abort(status.status_code(InternalError("no")), "no")


def test_the_command(address, facts_file, tmp_path, capsys):
    path = facts_file({"prompt": "The sky is", "answer": "blue", "type": "color"})
    folder = tmp_path / "results"
    words = ["evaluate", str(path), "--output", str(folder), "--address", address]
    assert main([*words, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == json.loads((folder / "report.json").read_text())
    assert "1/1" in output.err
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == (folder / "report.md").read_text().strip()
    with fake_service.serving(Refusing()) as refusing:
        assert main([*words[:-3], str(tmp_path / "failed"), "--address", refusing]) == 3
    assert "1 facts have failed" in capsys.readouterr().err.splitlines()[-1]
    path.write_text("{}")
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "line 1: needs a text as prompt" in capsys.readouterr().err
