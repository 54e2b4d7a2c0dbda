"""Models whose weights stay packed: traced as the same model unpacked, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution.traces import TraceOptions
from neuron_attribution_server.model.loading.models import engine_from, load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import ExplainedToken, TraceTask
from reference import packed_folders as folders

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
TASK = TraceTask(
    token_ids=(5, 9, 2, 77), explained=(ExplainedToken(3, 11),), options=TraceOptions(nodes=6, projection_top_k=0)
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_packed_projections_are_unpacked_again_for_gradients(tmp_path: Path) -> None:
    unpacked = folders.gptq_folder(tmp_path, "llama", 4)
    found, wanted = (engine.run([TASK])[0].graph for engine in (load_engine(packed(tmp_path)), engine_from(unpacked)))
    assert [(n.neuron, n.position) for n in found.nodes] == [(n.neuron, n.position) for n in wanted.nodes]
    for mine, other in zip(found.nodes[1:7], wanted.nodes[1:7], strict=True):
        numbers = [(n.effect, n.gradient, n.relevance, n.activation) for n in (mine, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)


def test_packed_experts_are_refused_by_name(tmp_path: Path) -> None:
    folders.fp8_experts_folder(tmp_path)
    (outcome,) = load_engine(packed(tmp_path)).run([TASK])
    assert isinstance(outcome, FailedPreconditionError)
    assert "stay packed" in str(outcome)


def packed(folder: Path) -> LoadSettings:
    return LoadSettings(str(folder / "packed"))
