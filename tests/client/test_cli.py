"""The command line: what it asks, what it prints, and how it fails."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from client.fake_service import ATTRIBUTION, INFO, INTERVENED, PROJECTIONS, TOKENIZATION, TRACE
from google.protobuf.json_format import Parse
from neuron_attribution import convert
from neuron_attribution.cli import output
from neuron_attribution.cli.commands import serve
from neuron_attribution.cli.main import COMMANDS, full_parser, main
from neuron_attribution.errors import InternalError, UnauthenticatedError
from neuron_attribution.generation import Sampling
from neuron_attribution.neurons import AttentionNeuron, FfnNeuron, Head
from neuron_attribution.requests import (
    Aggregate,
    AttributeOptions,
    AttributeRequest,
    Direction,
    InterveneRequest,
    Intervention,
    LayerPart,
    Part,
    ProjectNeuronRequest,
    Scale,
    ScoringMethod,
    SetTo,
    Side,
    Span,
    Subkey,
    TokenizeRequest,
)

CLIENT_COMMANDS = {
    "attribute": (["The sky is"], convert.attribute_result_to_proto(ATTRIBUTION)),
    "intervene": (["The sky is", "--zero", "1.17"], convert.intervene_result_to_proto(INTERVENED)),
    "trace": (["The sky is"], convert.trace_to_proto(TRACE)),
    "project": (["1.17"], convert.project_neuron_result_to_proto(PROJECTIONS)),
    "tokenize": (["The sky"], convert.tokenize_result_to_proto(TOKENIZATION)),
    "model": ([], convert.model_info_to_proto(INFO)),
}


@pytest.fixture
def run(address, capsys):
    """Runs a command; its exit status, standard output and standard error."""

    def run(*words):
        status = main([*words, "--address", address])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused as wrong usage; its standard error."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_json_is_the_response_and_nothing_else(run, command) -> None:
    arguments, response = CLIENT_COMMANDS[command]
    status, out, err = run(command, *arguments, "--json")
    assert (status, err) == (0, "")
    assert Parse(out, type(response)()) == response


def test_json_has_proto_names_and_zeros(run) -> None:
    explanation = json.loads(run("attribute", "The sky is", "--json")[1])["explanations"][0]
    query = explanation["query_ffn_neurons"]["neurons"][0]
    assert query["neuron"]["ffn"] == {"layer": 0, "index": 5}
    assert explanation["ffn_value_neurons"]["coverage"]["exact"] is True


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_one_line(address, redirected) -> None:
    """To a full disk; or nowhere at all, which nobody misses."""
    command = f'"{sys.executable}" -m neuron_attribution.cli.main model --json --address {address} {redirected}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    if redirected == ">&-":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert done.stderr == "neuron-attribution: [Errno 28] No space left on device\n"


def test_an_option_overrules_the_variable_of_one_that_it_excludes(run, service, monkeypatch) -> None:
    monkeypatch.setenv("NEURON_ATTRIBUTION_JSON", "1")
    monkeypatch.setenv("NEURON_ATTRIBUTION_TARGET", " red")
    status, out, _ = run("attribute", "The sky is", "--csv", "--target-id=7")
    assert (status, out[:1] == "{") == (0, False)
    assert service.requests[-1].target == 7
    assert run("attribute", "The sky is")[1].startswith("{")
    assert service.requests[-1].target == " red"


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_text_is_printable(run, command) -> None:
    status, out, err = run(command, *CLIENT_COMMANDS[command][0])
    assert (status, err) == (0, "")
    assert all(character.isprintable() or character == "\n" for character in out)
    assert "tiny (revision abc123, float32)" in out


def test_the_attribution_for_people(run) -> None:
    out = run("attribute", "The sky is")[1]
    for line in (
        r"         2   5  ' is\n'",
        "  explained    ' blue'   7       0.7500          -0.2500     1",
        "  contrast     ' red'   10       0.1250          -2.0000     2",
        "log probability of the target minus that of the contrast",
        "  added by attention layers   2.0000",
        "  FFN 0         2.5000",
        "  1.h0  0.7500  1 ' sky'                           0.5000            0.2500",
        "FFN value neurons (64 exist, 64 bounded, 12 scored, exact)",
        "  1.17    0.5000      -1.2500        75%        2.5000         -0.2500  ' 緑'",
        "  0.1.2   1 ' sky'         0.2500       0.7500        2.5000         -0.2500  ' blue' '\\x1b[31m'",
        "attention value neurons, decreasing (64 exist, 64 bounded, 0 scored, not guaranteed to be exact): none",
        "query layers of the FFN value neurons (30 sources, 1 skipped)",
        "  embedding    2.0000",
        "  0.5     4.9e-04  ' blue' '\\x1b[31m'",
        "time   queue 1.0 ms, tokenization 2.0 ms, forward 3.0 ms, scoring 4.0 ms; batch of 2 requests, 7 tokens",
    ):
        assert line in out.splitlines(), f"{line!r} is missing from:\n{out}"


EVERY_OPTION = """
    --contrast red --top-k 3 --direction both --method norm --parts heads,layers --projection-top-k 0
    --query-sources 5 --subkey gate --neuron 1.2 0.1.2 --neuron 1.3 --exhaustive --include-final-norm-bias
    --no-special-tokens --position-projection-top-k 4 --head-top-k 6 --attention-neurons-over-positions
"""


def test_every_option_of_attribute_is_sent(run, service) -> None:
    assert run("attribute", "The sky is", "--target", " blue", *EVERY_OPTION.split())[0] == 0
    options = AttributeOptions(
        parts=frozenset({Part.HEADS, Part.LAYERS}),
        top_k=3,
        direction=Direction.BOTH,
        scoring_method=ScoringMethod.NORM,
        projection_top_k=0,
        query_sources=5,
        head_top_k=6,
        subkey=Subkey.GATE,
        include_final_norm_bias=True,
        neurons=(FfnNeuron(1, 2), AttentionNeuron(0, 1, 2), FfnNeuron(1, 3)),
        exhaustive=True,
        position_projection_top_k=4,
        attention_neurons_over_positions=True,
    )
    assert service.requests == [
        AttributeRequest(prompt="The sky is", target=" blue", contrast="red", add_special_tokens=False, options=options)
    ]


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ([], {}),
        (["--target-id", "7", "--contrast-id", "0"], {"target": 7, "contrast": 0}),
        (["--completion", " blue and"], {"completion": " blue and"}),
        (["--generate", "2"], {"generate": 2}),
        (
            ["--generate", "2", "--temperature", "0.5", "--top-p", "0.9", "--sample-top-k", "40", "--seed", "7"],
            {"generate": 2, "sampling": Sampling(temperature=0.5, top_p=0.9, top_k=40, seed=7)},
        ),
        (["--span", "2:5"], {"span": Span(2, 5)}),
        (
            ["--completion", "b", "--contrast-completion", "c", "--aggregate", "mean", "--aggregate-only"],
            {
                "completion": "b",
                "contrast_completion": "c",
                "options": AttributeOptions(aggregate=Aggregate.MEAN, aggregate_only=True),
            },
        ),
    ],
)
def test_what_is_explained(run, service, words, fields) -> None:
    assert run("attribute", "a", *words)[0] == 0
    assert service.requests == [AttributeRequest(prompt="a", **fields)]


def test_project_and_tokenize_options_are_sent(run, service) -> None:
    assert run("project", "1.2", "1.3", "--side", "subkey", "--through", "0.1", "--top-k", "2")[0] == 0
    assert run("tokenize", "a", "--special-tokens")[0] == 0
    neurons = (FfnNeuron(1, 2), FfnNeuron(1, 3))
    assert service.requests == [
        ProjectNeuronRequest(neurons=neurons, side=Side.SUBKEY, through=Head(0, 1), top_k=2),
        TokenizeRequest(text="a", add_special_tokens=True),
    ]


def test_options_read_the_environment(run, service, monkeypatch, tmp_path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    environment = {"TOP_K": "3", "NEURON": "1.2 1.3", "EXHAUSTIVE": "yes", "SPECIAL_TOKENS": "off", "PARTS": "heads"}
    for name, value in {**environment, "TOKEN_FILE": str(token), "DIRECTION": ""}.items():
        monkeypatch.setenv(f"NEURON_ATTRIBUTION_{name}", value)
    assert run("attribute", "a")[0] == 0
    assert run("attribute", "a", "--top-k", "4", "--neuron", "1.4", "--parts", "layers")[0] == 0
    first, second = service.requests
    assert first.add_special_tokens is False
    assert first.options.neurons == (FfnNeuron(1, 2), FfnNeuron(1, 3))
    assert (first.options.top_k, first.options.exhaustive, first.options.parts) == (3, True, {Part.HEADS})
    assert (second.options.top_k, second.options.parts) == (4, {Part.LAYERS})
    assert second.options.neurons == (FfnNeuron(1, 4),)
    assert service.metadata[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOP_K", "0"), ("DIRECTION", "up"), ("EXHAUSTIVE", "maybe"), ("NEURON", "1.2 x"), ("TIMEOUT", "nan")],
)
def test_a_bad_value_from_the_environment_is_named(refused, monkeypatch, name, value) -> None:
    monkeypatch.setenv(f"NEURON_ATTRIBUTION_{name}", value)
    assert f"environment variable NEURON_ATTRIBUTION_{name}: " in refused("attribute", "a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("explain", "invalid choice: 'explain'"),
        ("attribute", "give a TEXT, --token-ids or messages"),
        ("attribute a --token-ids 1", "give a TEXT, --token-ids or messages"),
        ("intervene --zero 1.2", "give a TEXT, --token-ids or messages"),
        ("attribute --token-ids 1,x", "'x' is not a whole number from 0"),
        ("attribute a --top-k 0", "argument --top-k: '0' is not a whole number from 1"),
        ("attribute a --direction up", "'up' is none of increase, decrease, both"),
        ("attribute a --parts heads,tails", "'tails' is none of layers, heads"),
        ("attribute a --target b --generate 2", "--target and --generate exclude each other"),
        ("attribute a --contrast b --contrast-id 2", "--contrast and --contrast-id exclude each other"),
        ("attribute a --span 2", "argument --span: '2' is not two positions; write START:END"),
        ("attribute a --span 2:3 --generate 2", "--generate and --span exclude each other"),
        ("attribute a --aggregate all", "argument --aggregate: 'all' is none of sum, mean"),
        ("attribute a --timeout -1", "'-1' is not a time in seconds"),
        ("model --token a", "unrecognized arguments: --token"),
        (f"model --token-file {__file__}", "test_cli.py must hold the token and nothing else"),
        ("model --token-file /no/such/file", "No such file"),
        ("model --tls-certificate /no/such/file", "go together"),
        (f"model --tls-authority {__file__}", "root_certificates"),
        (f"model --tls-authority {__file__}", "holds no certificate in PEM format"),
        (f"model --tls-certificate {__file__} --tls-key {__file__}", "holds no private key in PEM format"),
        (f"model --token-file {sys.executable}", "must hold the token and nothing else"),
        ("project 1", "'1' is not a neuron: write LAYER.INDEX for FFN"),
        ("project 1.2 --through 1.2.3", "'1.2.3' is not a head"),
    ],
)
def test_wrong_usage(refused, words, message) -> None:
    assert message in refused(*words.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_an_example_that_is_understood(capsys, command) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = capsys.readouterr().out
    [example] = [line for line in out.splitlines()[:8] if line.startswith("example: ")]
    words = shlex.split(example.removeprefix("example: neuron-attribution "))
    assert full_parser().parse_args(words).command == command


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in {"serve", "completion"}])
def test_help_names_the_variables(capsys, command) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "NEURON_ATTRIBUTION_TLS_AUTHORITY" in capsys.readouterr().out


def test_a_failed_call_is_one_line(run, service) -> None:
    service.errors = [UnauthenticatedError("no valid token;\n send one"), InternalError("x", request_id="r1")]
    assert run("model") == (1, "", "neuron-attribution: no valid token; send one\n")
    assert run("model") == (1, "", "neuron-attribution: internal error; the server's log has it as request r1\n")


def test_serve_is_the_servers_command(monkeypatch) -> None:
    server = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--model"), run=lambda arguments: len(arguments.model)
    )
    monkeypatch.setitem(sys.modules, "neuron_attribution_server.cli", server)
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    assert main(["serve", "--model", "four"]) == 4


def test_serve_without_its_extra_says_what_to_install(monkeypatch, capsys) -> None:
    server = SimpleNamespace(add_arguments=lambda parser: None, run=None)
    monkeypatch.setitem(sys.modules, "neuron_attribution_server.cli", server)
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "torch" else object())
    assert main(["serve"]) == 1
    expected = "serve needs torch, which is not installed: pip install 'neuron-attribution[server]'"
    assert capsys.readouterr().err == f"neuron-attribution: {expected}\n"


def test_serve_that_cannot_be_imported_says_what_to_install(monkeypatch, capsys) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError(name="grpc_health")

    monkeypatch.setattr(serve, "import_module", import_module)
    assert main(["serve", "--help"]) == 1
    assert "pip install 'neuron-attribution[server]'" in capsys.readouterr().err


def test_help_works_without_the_server(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "neuron_attribution_server", None)
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_a_closed_pipe_is_quiet(address) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "neuron_attribution.cli.main", "model", "--address", address]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_characters_the_terminal_lacks_are_escaped(address) -> None:
    command = [sys.executable, "-m", "neuron_attribution.cli.main", "project", "1.17", "--address", address]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, env=environment)
    assert b"' \\u7dd1'" in done.stdout


def test_tables_count_columns_not_characters() -> None:
    lines = output.table("title", ("a", ">b"), [("緑", "1"), ("e\u0301e", "22")])
    assert lines == ["title", "  a    b", "  緑   1", "  e\u0301e  22"]


CHANGES = "--zero 1.17 0.1.2,0.h1 --zero 1.ffn --scale 1.e3.4=-0.5 --set 0.attention,1.5=2"


def test_intervene_takes_every_option(run, service) -> None:
    """Whatever the order of names, one intervention for each operation; all of them together."""
    run(
        "intervene",
        "The sky is",
        *CHANGES.split(),
        *["--target", "red", "--generate", "3", "--seed", "5", "--explained-position-only"],
    )
    sets = (
        Intervention(
            neurons=(FfnNeuron(1, 17), AttentionNeuron(0, 1, 2)), heads=(Head(0, 1),), layers=(LayerPart(1, "ffn"),)
        ),
        Intervention(Scale(-0.5), neurons=(FfnNeuron(1, 4, 3),)),
        Intervention(SetTo(2.0), neurons=(FfnNeuron(1, 5),), layers=(LayerPart(0, "attention"),)),
    )
    sets = (tuple(replace(each, explained_position_only=True) for each in sets),)
    assert service.requests == [
        InterveneRequest(prompt="The sky is", sets=sets, target="red", generate=3, sampling=Sampling(seed=5))
    ]


@pytest.mark.parametrize("command", ["attribute", "intervene --zero 1.2"])
def test_a_prompt_of_token_ids(run, service, command) -> None:
    assert run(*command.split(), "--token-ids", "3,4, 5")[0] == 0
    assert service.requests[0].prompt == (3, 4, 5)


def test_an_ffn_neuron_that_looks_like_a_head_is_told(run) -> None:
    _, out, _ = run("intervene", "The sky is", "--zero", "1.4,1.1005,1.h4")
    [note] = [line for line in out.splitlines() if "note" in line]
    assert note.endswith("1.4 is FFN neuron 4 of layer 1; head 4 is written 1.h4")


def test_intervene_separately(run, service) -> None:
    run("intervene", "The sky is", "--separately", "--zero", "1.17,1.ffn", "--scale", "0.h1=2")
    [request] = service.requests
    assert request.sets == (
        (Intervention(neurons=(FfnNeuron(1, 17),)),),
        (Intervention(layers=(LayerPart(1, "ffn"),)),),
        (Intervention(Scale(2.0), heads=(Head(0, 1),)),),
    )


def test_attribute_takes_interventions(run, service) -> None:
    run("attribute", "The sky is", "--zero", "0.h1")
    assert service.requests[0].options.interventions == (Intervention(heads=(Head(0, 1),)),)


def test_interventions_from_the_environment(run, service, monkeypatch) -> None:
    monkeypatch.setenv("NEURON_ATTRIBUTION_ZERO", "1.17 0.h1")
    monkeypatch.setenv("NEURON_ATTRIBUTION_SCALE", "1.ffn=2")
    run("intervene", "The sky is")
    assert len(service.requests[0].sets[0]) == 2


def test_the_interventions_for_people(run) -> None:
    out = run("intervene", "The sky is", "--zero", "1.17", "0.h1", "--scale", "0.ffn=2")[1]
    for line in (
        "                                    token    probability  log probability  rank      KL  goes on",
        "  before                            ' blue'       0.7500          -0.2500     1          ' sky is\\n'",
        "  zero 1.17,0.h1 scale 0.ffn=2      ' red'        0.1250          -2.0000     2  0.5000",
        "most probable next tokens, before",
        "  ' blue'       0.7500",
    ):
        assert line.split() in [found.split() for found in out.splitlines()], f"{line!r} is missing from:\n{out}"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "nothing is changed; give --zero, --scale or --set"),
        (["--zero", "17"], "'17' names nothing that can be changed: write LAYER.INDEX"),
        (["--scale", "1.17"], "'1.17' is not NAME=NUMBER"),
        (["--scale", "1.17=nan"], "'nan' is not a finite number"),
        (["--set", "1.17=x"], "'x' is not a finite number"),
        (["--zero", "1.2", "--target", "a", "--target-id", "3"], "--target and --target-id exclude each other"),
    ],
)
def test_interventions_that_make_no_sense(refused, words, complaint) -> None:
    assert complaint in refused("intervene", "The sky is", *words)
