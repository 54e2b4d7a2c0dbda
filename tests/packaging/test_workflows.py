"""The workflows on GitHub: valid, of least permission, pinned, and running what a person runs."""

import os
import re

import pytest
import yaml
from checkout import BIN, PROJECT, ROOT, attempt, run

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").iterdir())
STEPS = [
    step for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]
]
COMMANDS = sorted({step["run"] for step in STEPS if "run" in step})
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_file_has_its_schema(schema):
    run(BIN / "check-jsonschema", "--builtin-schema", schema, *SCHEMAS[schema])


def test_the_security_linter_finds_nothing():
    run(BIN / "zizmor", "--offline", "--persona", "pedantic", "--no-progress", GITHUB)


def test_every_action_is_a_commit_with_its_version_beside_it():
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    used = re.findall(r"uses: (.*)", text)
    assert len(used) == sum("uses" in step for step in STEPS)
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    assert len({action.partition("@")[0] for action in used}) == len(set(used)), "one commit of each action"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_step_runs_what_a_person_runs(command):
    if command.startswith("make "):
        assert attempt("make", "--dry-run", *command.split()[1:], cwd=ROOT).returncode == 0
    else:
        assert os.access(ROOT / command, os.X_OK)


def test_they_run_the_tests_the_audit_and_the_release():
    assert COMMANDS == [".ci/run", "make audit", "make release"]
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_they_run_the_python_versions_that_the_project_names():
    text = "\n".join(path.read_text() for path in WORKFLOWS)
    versions = set(re.findall(r'python(?:-version)?: ?"?(\d\.\d+)', text))
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: \d\.\d+$", line)}
    assert versions == named
