"""constraints.txt: one exact version of everything the tests run with, and nothing else."""

import re
from importlib.metadata import distribution

import pytest
from checkout import PIN_LINES, PINS, PROJECT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PINNED_ELSEWHERE = re.compile("pip|triton|(nvidia|cuda)-.*")
"""What comes with Python, or with a CUDA build of torch, which names exact versions itself."""


@pytest.fixture(scope="module")
def tested():
    """The names of everything the test extra brings, from what is installed."""
    reached = {}
    follow("neuron-attribution", frozenset({"test"}), reached)
    return {name for name in reached if name != "neuron-attribution" and not PINNED_ELSEWHERE.fullmatch(name)}


def follow(name, extras, reached):
    known = reached.get(name)
    if known is not None and extras <= known:
        return
    reached[name] = extras = extras | (known or frozenset())
    for requirement in requirements(name, extras):
        follow(canonicalize_name(requirement.name), frozenset(requirement.extras), reached)


def requirements(name, extras):
    """What a package needs here; of this project, as pyproject.toml has it now."""
    if name == "neuron-attribution":
        groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
        return [Requirement(line) for group in groups for line in group]
    needed = map(Requirement, distribution(name).requires or ())
    return [need for need in needed if applies(need.marker, extras)]


def applies(marker, extras):
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def test_every_line_is_one_exact_version():
    for line in PIN_LINES:
        assert re.fullmatch(r"[\w.-]+==[\w.!]+(  # benchmark)?", line), line
    assert len(PINS) == len(PIN_LINES)


def test_the_lines_are_sorted():
    names = [line.partition("==")[0].lower() for line in PIN_LINES]
    assert names == sorted(names)


def test_everything_that_is_tested_is_pinned_to_what_is_installed(tested):
    for name in sorted(tested):
        assert name in PINS, f"{name} is not in constraints.txt"
        assert Version(distribution(name).version.partition("+")[0]) == Version(PINS[name]), name


def test_nothing_is_pinned_that_nobody_needs(tested):
    benchmark = {name for name, line in zip(PINS, PIN_LINES, strict=True) if line.endswith("# benchmark")}
    assert set(PINS) - benchmark == tested
