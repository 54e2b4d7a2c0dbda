"""The documents: every relative link leads somewhere, every command they name exists."""

import re
from dataclasses import fields
from pathlib import PurePosixPath
from posixpath import normpath

import pytest
from checkout import PROJECT, ROOT, attempt, tracked_files
from markdown_it import MarkdownIt
from neuron_attribution_server.settings.config import ServerConfig, flag_name

FILES = tracked_files()
DOCUMENTS = [name for name in FILES if name.endswith(".md")]
MOST_COLUMNS, MOST_LINES = 100, 120
WRITTEN_BY_COMMANDS = {
    *("docs/architectures.md", "docs/benchmarks.md", "docs/benchmarks-gpu.md", "docs/capacity.md"),
    *(
        "docs/notebooks.md",
        "docs/soak.md",
        "docs/soak-predictions.md",
        "docs/verification.md",
        "docs/verification-gemma.md",
        "docs/verification-bfloat16.md",
    ),
    "client/neuron_attribution/report/vendor/README.md",
}
FOLDERS = {str(parent) for name in FILES for parent in PurePosixPath(name).parents}


def pieces(name):
    """The parts of a document as Markdown has them: links, images, code."""
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse((ROOT / name).read_text()):
        yield token
        yield from token.children or ()


def links(name):
    for piece in pieces(name):
        target = piece.attrs.get("href") or piece.attrs.get("src")
        if target and not re.match(r"[a-z]+:", target):
            yield target


def anchors(name):
    """The names GitHub gives a document's headings."""
    titles = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_documents_and_links():
    assert {"README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(DOCUMENTS)
    assert len([target for name in DOCUMENTS for target in links(name)]) >= 5


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name):
    for target in links(name):
        path, _, anchor = target.partition("#")
        place = normpath(str(PurePosixPath(name).parent / path)) if path else name
        assert place in FILES or place in FOLDERS, target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - WRITTEN_BY_COMMANDS))
def test_lines_wrap(name):
    """At a hundred columns, but for tables, headings, pictures and code."""
    code, long = False, []
    for line in (ROOT / name).read_text().splitlines():
        code ^= line.lstrip().startswith("```")
        if not code and not re.match(r"    |\s*\||#|!\[", line) and len(line) > MOST_COLUMNS:
            long.append(line)
    assert long == []


def test_the_readme_is_for_someone_who_arrived_a_minute_ago():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_exists(name):
    code = "\n".join(piece.content for piece in pieces(name) if piece.type in {"code_inline", "code_block", "fence"})
    for target in set(re.findall(r"^make (\w+)", code, re.MULTILINE)):
        assert attempt("make", "--dry-run", target, cwd=ROOT).returncode == 0, target


def test_the_settings_that_the_security_rests_on_exist():
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "SECURITY.md").read_text()))
    assert len(named) >= 5
    assert named <= {flag_name(setting.name) for setting in fields(ServerConfig)}


def test_the_changelog_tells_of_the_version():
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()
