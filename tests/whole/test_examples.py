"""The example scripts, as their readers run them: against a server with the demo model."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from neuron_attribution import AsyncClient, Client, Intervention, LayerPart
from service.demo_server import run
from service.shown import assert_shown

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def address(demo_server):
    return demo_server.address


def example(name, *arguments):
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_intervene(address):
    lines = example("intervene", address).splitlines()
    assert len(lines) == 7
    assert_shown(lines, "intervening.md")


def test_a_wrong_answer(address):
    """Of a conversation: ten neurons behind the whole answer, and without them the right one."""
    lines = example("wrong_answer", address).splitlines()
    assert lines[-1] == "without them: 'The capital of Turkey is Ankara.<|im_end|>'"
    assert_shown(lines, "answers.md")


def test_the_command_prints_what_the_page_shows(address):
    words = ["intervene", PROMPT, "--zero", "24.1005", "23.h4", "--generate", "5"]
    lines = run(*words, address=address).stdout.splitlines()
    assert lines[-2].startswith("model")
    assert_shown(lines[:-2], "intervening.md")


def test_both_clients_and_a_rerun_agree(address):
    sets = [[Intervention(layers=(LayerPart(20, "ffn"),))], [Intervention(heads=("23.4",))]]
    with Client(address) as client:
        first, again = (client.intervene(PROMPT, sets, target=" Paris", generate=3) for _ in range(2))

    async def asynchronously():
        async with AsyncClient(address) as client:
            return await client.intervene(PROMPT, sets, target=" Paris", generate=3)

    for other in (again, asyncio.run(asynchronously())):
        assert (other.before, other.results) == (first.before, first.results)
    assert first.before.target.rank == 1
    assert first.results[1].after.target.probability < first.before.target.probability / 2


def test_evaluate(address):
    """Taking away what the paper's method names lowers the right word more than ten random neurons."""
    lines = example("evaluate", address).splitlines()
    found = dict(line.removeprefix("without ").rsplit(": ", 1) for line in lines[1:])
    assert len(found) == 13
    assert float(found["a"]) < float(found["random 10"]) - 1
    assert float(found["300 value neurons"]) < float(found["300 random neurons"]) - 2
