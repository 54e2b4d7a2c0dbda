"""The command line on a terminal: colours, widths, a sign of life; and none of it elsewhere."""

import os
import re
import subprocess
import sys

import pytest
from client.terminal import Terminal
from rich.cells import cell_len

pytestmark = pytest.mark.process

COMMAND = (sys.executable, "-m", "neuron_attribution.cli.main")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


@pytest.fixture
def shown(address):
    """What a command shows on a terminal."""

    def shown(*words, **terminal):
        with Terminal([*COMMAND, *words, "--address", address], **terminal) as screen:
            assert screen.finish() == 0
            return screen.text

    return shown


def piped(address, *words, **environment):
    command = [*COMMAND, *words, "--address", address]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, **environment}
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_colours_and_nothing_is_wider_than_it(shown, columns):
    text = shown("attribute", "The sky is", columns=columns)
    assert COLOUR.search(text)
    lines = ESCAPE.sub("", text).splitlines()
    assert max(map(cell_len, lines)) <= columns
    assert "  1.17    0.5000      -1.2500        75%        2.5000         -0.2500  ' 緑'" in [
        line.rstrip() for line in lines
    ]


def test_rows_of_tokens_are_cut_and_prose_goes_on_below(shown):
    tokens = ESCAPE.sub("", shown("attribute", "The sky is", columns=45))
    assert re.search(r"  0\.5     4\.9e-04  ' blue' '\\x1b\[31m'", tokens)
    assert "…" in ESCAPE.sub("", shown("attribute", "The sky is", columns=34))
    model = ESCAPE.sub("", shown("model", columns=60))
    assert re.search(r"residual_sum .* the writes\s+add up", model)
    assert "…" not in model


def test_no_colour_where_it_is_not_wanted(shown):
    text = shown("tokenize", "The sky", NO_COLOR="1")
    assert not COLOUR.search(text)
    assert "' sky'" in text


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "20"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_pipe_gets_plain_text_that_depends_on_nothing(address, environment):
    words = "attribute", "The sky is"
    out, err = piped(address, *words, **environment)
    assert "\x1b[" not in out
    assert err == ""
    assert (out, err) == piped(address, *words)
    assert (
        "  0.1.2   1 ' sky'         0.2500       0.7500        2.5000         -0.2500  ' blue' '\\x1b[31m'"
        in out.splitlines()
    )


def test_a_wait_of_more_than_a_second_is_shown_and_leaves_nothing(service, shown, address):
    assert "tokenizing" not in shown("tokenize", "The sky", "--json")
    service.delay = 1.3
    text = shown("tokenize", "The sky", "--json")
    assert "tokenizing" in text
    assert text.rindex("\x1b[2K") < text.index("{\n")
    assert piped(address, "tokenize", "The sky", "--json")[1] == ""
