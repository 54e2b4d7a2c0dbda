"""The completion scripts, in the shells they are for."""

import shutil
import subprocess
import sys

import pytest
from client.terminal import Terminal
from neuron_attribution.cli.main import COMMANDS

pytestmark = pytest.mark.process

COMMAND = (sys.executable, "-m", "neuron_attribution.cli.main", "completion")
BASH = """
source {script}
complete -p neuron-attribution >/dev/null
COMP_WORDS=({words} "$1"); COMP_CWORD={number}
_shtab_neuron_attribution
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def script(tmp_path):
    """Makes the script for a shell, as a file."""

    def script(shell):
        path = tmp_path / shell
        path.write_text(subprocess.run([*COMMAND, shell], capture_output=True, text=True, check=True).stdout)
        return path

    return script


def bash(script, line):
    *words, last = line.split(" ")
    text = BASH.format(script=script, words=" ".join(words), number=len(words))
    return subprocess.run(["bash", "-c", text, "bash", last], capture_output=True, text=True, check=True).stdout.split()


def fish(script, line):
    command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [text.partition("\t")[0] for text in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("shell", "complete"),
    [pytest.param("bash", bash, marks=needs("bash")), pytest.param("fish", fish, marks=needs("fish"))],
)
def test_commands_options_values_and_files_are_completed(script, shell, complete, tmp_path):
    path = script(shell)
    assert set(complete(path, "neuron-attribution ")) >= set(COMMANDS)
    assert complete(path, "neuron-attribution tok") == ["tokenize"]
    assert "--projection-top-k" in complete(path, "neuron-attribution attribute text --proj")
    assert complete(path, "neuron-attribution attribute text --direction d") == ["decrease"]
    assert complete(path, "neuron-attribution completion f") == ["fish"]
    assert complete(path, f"neuron-attribution model --token-file {tmp_path}/{shell[:2]}") == [str(path)]


@needs("zsh")
def test_zsh_completes_as_one_types(script):
    path = script("zsh")
    path.rename(path.with_name("_neuron-attribution"))
    with Terminal(["zsh", "-f", "-i"], PS1="> ") as screen:
        screen.press(f"fpath=({path.parent} $fpath); autoload -Uz compinit; compinit -u -D; print loa''ded\n")
        screen.wait_for("loaded\n")
        screen.wait_for("> ")
        screen.press("neuron-attribution attribute text --direction dec\t")
        screen.wait_for("--direction decrease")
