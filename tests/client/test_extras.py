"""The table of extras: every one that a user installs, and the line that errors name as well."""

import re
import tomllib

import pytest
from checkout import ROOT
from neuron_attribution.display.extras import needs_extra

OURS = {"docs", "release", "test", "benchmark", "web"}
"""Those that developers use, and one that says the same as another."""
TABLE = re.findall(
    r"^\| `(\w+)` \| .* \| `(pip install [^`]+)` \|$", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE
)


def test_every_extra_is_in_the_table():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, _ in TABLE} == extras.keys() - OURS


@pytest.mark.parametrize(("extra", "line"), TABLE)
def test_errors_name_the_line_of_the_table(extra, line):
    with pytest.raises(ModuleNotFoundError) as caught, needs_extra(extra, "this"):
        raise ModuleNotFoundError(name="missing")
    if extra != "tracing":  # which a server asks for, beside its own
        assert str(caught.value).endswith(line)
    assert f"{extra}]'" in line
