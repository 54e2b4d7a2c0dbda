"""docs/notebooks.md is what its script does now: the same code, the same numbers, the same pictures."""

import re
from difflib import SequenceMatcher

import numpy as np
import pytest
from neuron_attribution_server.demo import DemoUnavailableError, demo_folder
from notebook_page import IMAGES, MARKDOWN, PAGE, cells, described, page, run
from service.demo_server import serving

NUMBER = re.compile(r"-?\d+\.\d+")
TOLERANCE = 2e-3
SAME = 0.98


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def now(images):
    """The script's cells with what they print now."""
    try:
        demo_folder()
    except DemoUnavailableError as error:
        pytest.skip(f"no demo model: {error}")
    with serving() as (address, _):
        return run(address, images)


def test_every_cell_of_the_notebooks_is_there():
    titles = " ".join(cell.title for cell in cells() if cell.title != MARKDOWN)
    spans = re.findall(r"Cells? (\d+)(?:–(\d+))?", titles)
    numbers = [range(int(first), int(last or first) + 1) for first, last in spans]
    assert [number for each in numbers for number in each] == list(range(20))


def test_the_page_is_what_a_run_gives(now):
    """But for what another processor's rounding may change: the order of two tokens that are nearly level."""
    written, fresh = PAGE.read_text(), page(now)
    assert len(written.splitlines()) == len(fresh.splitlines())
    assert SequenceMatcher(None, words(written), words(fresh), autojunk=False).ratio() > SAME
    pairs = zip(numbers(written), numbers(fresh), strict=True)
    assert np.mean([abs(one - other) < TOLERANCE for one, other in pairs]) > SAME


def test_the_pictures_show_what_a_run_gives(now, images):
    drawn = {name for cell in now for name in cell.pictures}
    assert drawn == {path.stem for path in IMAGES.glob("*.svg")}
    for name in drawn:
        written, fresh = described(IMAGES / f"{name}.svg"), described(images / f"{name}.svg")
        assert written.keys() == fresh.keys()
        for part, values in written.items():
            assert values == pytest.approx(fresh[part], abs=TOLERANCE)


def words(text):
    return NUMBER.sub("N", text).split()


def numbers(text):
    return [float(number) for number in NUMBER.findall(text)]
