"""The documentation's site: built without a warning, whole, and without anything fetched from elsewhere."""

import os
import re
import zlib
from html.parser import HTMLParser

import neuron_attribution
import pytest
from checkout import BIN, ROOT, run

ALIASES = {"Neuron", "Operation"}
"""Names that stand for types which the reference has."""
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
RELATIONS = {"canonical", "edit", "next", "prev"}
"""Links of a page's head that a browser does not fetch."""


class Resources(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, html):
        super().__init__()
        self.addresses = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in FETCHED and given.get("rel") not in RELATIONS:
            self.addresses.append(given.get(FETCHED[tag]))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run(BIN / "mkdocs", "build", "--strict", "--site-dir", folder, cwd=ROOT, env=environment)
    return folder


def test_every_document_is_a_page(site):
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    assert documents <= {path.relative_to(site) for path in site.glob("**/*.html")}


def test_every_public_name_is_in_the_reference(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    named = {line.split(" ")[0].rpartition(".")[2] for line in zlib.decompress(inventory).decode().splitlines()}
    assert set(neuron_attribution.__all__) - ALIASES <= named
    reference = (site / "reference.html").read_text()
    for words in ("to_dataframe", "attribute_stream", "head_positions", "├── InvalidArgumentError"):
        assert words in reference


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.glob("**/*.html"):
        addresses = [address for address in Resources(path.read_text()).addresses if address]
        assert addresses
        assert [address for address in addresses if re.match(r"(https?:)?//", address)] == []


def test_links_to_the_repository_name_its_files(site):
    alerts = (site / "alerts.html").read_text()
    assert "deploy/prometheus/rules.yaml</code>" in alerts
    assert '"../deploy' not in alerts
