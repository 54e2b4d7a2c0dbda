"""Runbooks: one for every alert, and what they send people to look at exists."""

import re
from dataclasses import fields

import pytest
from alerts.documents import ALERTS, PANELS, ROOT, RUNBOOKS
from neuron_attribution_server.settings.config import ServerConfig, flag_name

PAGES = sorted(RUNBOOKS.glob("*.md"))
TITLES = {panel["title"] for panel in PANELS}
FLAGS = {flag_name(setting.name) for setting in fields(ServerConfig)}
HEADINGS = ["What it means", "What to look at", "What to do", "How it was provoked"]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_points_to_a_page_about_it(alert):
    page = ROOT / ALERTS[alert]["annotations"]["runbook_url"]
    assert page in PAGES
    assert alert in page.read_text().splitlines()[0]


def test_every_page_is_about_an_alert():
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} == {
        rule["annotations"]["runbook_url"] for rule in ALERTS.values()
    }


@every_page
def test_a_page_says_what_it_means_where_to_look_what_to_do_and_how_it_was_tried(page):
    assert re.findall("^## (.+)", page.read_text(), re.MULTILINE) == HEADINGS


@every_page
def test_the_alerts_panels_settings_and_pages_that_a_page_names_exist(page):
    text = page.read_text()
    assert set(re.findall(r"\bNeuronAttribution\w+", text)) <= set(ALERTS)
    in_italics = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text))
    assert {words for words in in_italics - TITLES if not any(alert.endswith(words) for alert in ALERTS)} == set()
    assert set(re.findall(r"`(--[\w-]+)", text)) <= FLAGS
    assert all((RUNBOOKS / link).exists() for link in re.findall(r"\]\(([^)]+\.md)\)", text))


def test_the_table_of_alerts_is_complete():
    table = (ROOT / "docs/alerts.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\((\S+)\) \| (\w+) \|", table, re.MULTILINE)
    assert rows == [
        (name, rule["annotations"]["runbook_url"].removeprefix("docs/"), rule["labels"]["severity"])
        for name, rule in ALERTS.items()
    ]
