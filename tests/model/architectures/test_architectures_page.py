"""docs/architectures.md is the page that a run writes: every family is on it, and every other one refused."""

import re

from families_page import (
    MODELS,
    PAGE,
    REFUSED,
    SUPPORTED,
    by_their_language_model,
    refused,
    supported,
    well_known,
)
from neuron_attribution_server.model.architectures.families import FAMILIES
from neuron_attribution_server.model.architectures.refusals import refusal
from neuron_attribution_server.model.loading.models import engine_from
from reference.compared import compare_dissected
from reference.tiny_families import TINY_FAMILIES, tiny_family

ERROR = re.compile(r"\d+e[-+]\d+")


def section(title: str) -> str:
    return PAGE.read_text().split(title)[1].split("\n## ")[0]


def test_every_tiny_model_is_on_the_page() -> None:
    rows = [line for line in section("## Supported").splitlines() if ERROR.search(line)]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == sorted(TINY_FAMILIES)


def test_the_page_says_what_a_run_says() -> None:
    """But for the last digit of errors."""
    for name in ("gemma2", "falcon, ALiBi", "qwen2_moe", "olmo2"):
        now = supported(name, FAMILIES[TINY_FAMILIES[name][0]], compare_dissected(tiny_family(name), name))
        (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
        assert ERROR.sub("", now).strip() == ERROR.sub("", row).strip()
        assert all(float(error) < 1e-5 for error in ERROR.findall(row))


def test_what_well_known_models_tell_is_on_the_page() -> None:
    table = section("## Well-known models")
    for models, name in MODELS.items():
        assert f"| {models} | {TINY_FAMILIES[name][0]} |" in table
    for models in ("Llama 4", "Gemma 2", "LFM2", "Falcon-H1", "Nemotron-H"):
        assert well_known(models, MODELS[models], engine_from(tiny_family(MODELS[models]))) in table


def test_every_other_architecture_is_refused_on_the_page() -> None:
    text = section("## Refused")
    assert re.findall(r"^\| ([\w-]+) \|", text, re.M) == refused()
    for family in refused():
        assert f"| {family} | {refusal(family)} |" in text


def test_models_that_hold_a_language_model_go_by_its_family() -> None:
    assert by_their_language_model()["gemma3"] == "gemma3_text"
    for name, family in by_their_language_model().items():
        assert f"{name} ({family})" in section("## Refused")


def test_the_texts_are_the_generators() -> None:
    page = PAGE.read_text()
    assert REFUSED.splitlines()[3] in page
    assert SUPPORTED.splitlines()[1] in page
