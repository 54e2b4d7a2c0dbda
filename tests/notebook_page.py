"""Writes docs/notebooks.md and its pictures: client/examples/notebooks.py is run against the demo model, cell by cell.

PYTHONPATH=tests python -m notebook_page
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from checkout import ROOT
from matplotlib import pyplot
from matplotlib.axes import Axes
from service.demo_server import serving

SCRIPT = ROOT / "client" / "examples" / "notebooks.py"
PAGE = ROOT / "docs" / "notebooks.md"
IMAGES = ROOT / "docs" / "images"
CELL = re.compile(r"^# %% (.*)\n", re.MULTILINE)
MARKDOWN = "[markdown]"
TITLE = """# The published notebooks, through the service

This page is written by `make notebooks`, from a run of
[notebooks.py](../client/examples/notebooks.py): what stands below each cell is what it printed and drew
(SmolLM2-135M-Instruct, float32, two cores of an AMD EPYC, no GPU). The script is a notebook in the percent format,
which editors and Jupytext open as one.
"""
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "neuron-attribution", "figure.figsize": (7.2, 3.2)}
"""Texts stay texts, and the same picture is the same file."""


@dataclass(frozen=True)
class Cell:
    """A cell: its title and source, what it printed, the pictures it drew by name."""

    title: str
    source: str
    output: str = ""
    pictures: tuple[str, ...] = ()


def main() -> None:
    """Write the page."""
    with serving() as (address, _):
        PAGE.write_text(page(run(address, IMAGES)))


def cells() -> list[Cell]:
    """The script's cells; what stands above the first is not one."""
    parts = CELL.split(SCRIPT.read_text())[1:]
    return [Cell(title, source.strip()) for title, source in zip(parts[::2], parts[1::2], strict=True)]


def run(address: str, images: Path) -> list[Cell]:
    """Run every cell against a server."""
    os.environ["NEURON_ATTRIBUTION_ADDRESS"] = address
    images.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    try:
        with mpl.rc_context(STYLE):
            return list(_run(images))
    finally:
        del os.environ["NEURON_ATTRIBUTION_ADDRESS"]
        pyplot.close("all")


def _run(images: Path) -> Iterator[Cell]:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for cell in cells():
        if cell.title == MARKDOWN:
            yield cell
            continue
        drawn: list[str] = []

        def show(axes: Axes, name: str, drawn: list[str] = drawn) -> None:
            drawn.append(name)
            save(axes, images / f"{name}.svg")

        if "show" in namespace:
            namespace["show"] = show
        with redirect_stdout(StringIO()) as printed:
            exec(compile(cell.source, f"{SCRIPT.name}: {cell.title}", "exec"), namespace)
        yield Cell(cell.title, cell.source, printed.getvalue(), tuple(drawn))
    namespace["client"].close()


def save(axes: Axes, path: Path) -> None:
    """Save a picture with what is drawn in it as its description."""
    axes.figure.savefig(path, metadata={"Date": None, "Description": json.dumps(drawn_data(axes))})
    # matplotlib leaves spaces at line ends.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


def drawn_data(axes: Axes) -> dict[str, list[float]]:
    """The numbers in a picture: heights of bars, lines, images."""
    values = {f"bars {number}": [bar.get_height() for bar in bars] for number, bars in enumerate(axes.containers)}
    values |= {f"line {number}": line.get_ydata() for number, line in enumerate(axes.lines)}
    values |= {f"image {number}": image.get_array().ravel() for number, image in enumerate(axes.images)}
    return {name: np.round(np.asarray(found, float), 4).tolist() for name, found in values.items()}


def described(path: Path) -> dict[str, list[float]]:
    """What a saved picture says is drawn in it."""
    (text,) = re.findall(r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL)
    return json.loads(text.replace("&quot;", '"'))


def page(run: list[Cell]) -> str:
    """The page of a run."""
    return "\n".join([TITLE, *(_section(cell) for cell in run)])


def _section(cell: Cell) -> str:
    if cell.title == MARKDOWN:
        return "".join(f"{line[2:]}\n" for line in cell.source.splitlines())
    output = f"\n```text\n{cell.output}```\n" if cell.output else ""
    pictures = "".join(f"\n![{name}](images/{name}.svg)\n" for name in cell.pictures)
    return f"## {cell.title}\n\n```python\n{cell.source}\n```\n{output}{pictures}"


if __name__ == "__main__":
    main()
