"""CSV from the command line: one row a component, under the columns the documentation names."""

import csv
import io
import json

import pytest
from checkout import ROOT
from neuron_attribution.cli.main import main

ARGUMENTS = {"attribute": ["The sky is"], "project": ["1.17"], "tokenize": ["The sky"], "model": []}
CSV = {
    "attribute": (18, "explanation,target,ranking,direction,rank,component,kind,layer,head,expert,index,position,"),
    "project": (4, "component,end,rank,token_id,token,score"),
    "tokenize": (3, "position,token_id,token,first_byte,end_byte,message,role,template"),
    "model": (40, "section,name,value"),
}


@pytest.fixture
def run(address, capsys):
    """Runs a command; its exit status, standard output and standard error."""

    def run(*words):
        status = main([*words, "--address", address])
        return (status, *capsys.readouterr())

    return run


@pytest.mark.parametrize("command", CSV)
def test_csv_is_one_row_a_component_and_nothing_else(run, command) -> None:
    status, out, err = run(command, *ARGUMENTS[command], "--csv")
    rows = list(csv.reader(io.StringIO(out, newline="")))
    assert (status, err) == (0, "")
    count, columns = CSV[command]
    assert out.startswith(columns)
    assert len(rows) == count
    assert {len(row) for row in rows} == {len(rows[0])}


def test_the_rows_of_an_attribution(run) -> None:
    rows = list(csv.DictReader(io.StringIO(run("attribute", "The sky is", "--csv")[1], newline="")))
    (neuron,) = (row for row in rows if row["kind"] == "attention_neuron")
    assert neuron == {
        "explanation": "0",
        "target": " blue",
        "ranking": "attention_value_neurons",
        "direction": "increase",
        "rank": "1",
        "component": "0.1.2",
        "kind": "attention_neuron",
        "layer": "0",
        "head": "1",
        "expert": "",
        "index": "2",
        "position": "1",
        "score": "0.25",
        "coefficient": "0.75",
        "promotes": json.dumps([" blue", "\x1b[31m"]),
        "source_token": " sky",
        "target_value": "2.5",
        "target_rank": "1",
        "contrast_value": "-0.25",
        "contrast_rank": "40",
        "activity": "",
    }


def test_json_and_csv_exclude_each_other(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["model", "--json", "--csv"])
    assert "not allowed with argument --json" in capsys.readouterr().err


def test_the_columns_are_documented(run) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for command, words in ARGUMENTS.items():
        columns = run(command, *words, "--csv")[1].splitlines()[0].split(",")
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{command}` |"))
        assert row.split("`")[3::2] == columns
