"""The benchmark runs on the tiny shape and writes its sections. No time is asserted."""

import re
import sys

import pytest

from benchmarks import markdown, stages
from benchmarks.__main__ import main


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmarks") / "docs" / "benchmarks.md"
    assert main(["--shape", "tiny", "--quick", "--output", str(output)]) == 0
    return output.read_text()


def test_every_section_is_there(document):
    titles = re.findall(r"^## (.*)$", document, re.MULTILINE)
    first = ["Comparison", "Attribution at 128 tokens", "Floor", "Profile by stage"]
    assert titles == [*first, "Batch", "Top k", "Explained tokens"]


def test_every_section_has_its_conditions_beside_it(document):
    sections = document.split("\n## ")[1:]
    assert all("tiny shape" in section.split("\n")[2] and "float32" in section for section in sections)


def test_the_conditions_name_what_numbers_depend_on(document):
    for name in ("model", "dtype", "CPU", "versions", "prompts", "repetitions", "date", "command"):
        assert f"| {name} |" in document


def test_one_section_can_be_written_anew(document):
    new = markdown.replaced(document, markdown.section("Floor", "new"))
    assert "\n\n## Floor\n\nnew\n\n## Profile by stage\n" in new
    old = document.split("\n## ")
    assert [part for part in new.split("\n## ") if part not in old] == ["Floor\n\nnew\n"]


def test_our_rankings_are_those_of_the_benchmarks_own_brute_force(document):
    (check,) = re.findall(r"^- (ffn.*)$", document, re.MULTILINE)
    assert check.count("100%") == 4
    assert float(check.rpartition(" ")[2]) < 1e-5


def test_the_profile_leaves_the_engine_as_it_was():
    def functions():
        modules = [module for name, module in sys.modules.items() if name.startswith(stages.ROOT)]
        return {(module.__name__, name): value for module in modules for name, value in vars(module).items()}

    with stages.watching():
        pass
    before = functions()
    with stages.watching():
        assert functions() != before
    assert functions() == before
