"""`make gpu` as it runs where there is a GPU, on the tiny shape of a CPU; and where there is none."""

import re
import sys
import time
import zipfile
from importlib import metadata

import pytest
from checkout import ROOT

from benchmarks.gpu import counting, measuring, page, plan, prepare, profiling
from benchmarks.gpu.__main__ import MEASURED, NOT_RUN, TITLE, main

NUMBER = re.compile(r"\d")


@pytest.fixture(scope="module", autouse=True)
def _few():
    with pytest.MonkeyPatch.context() as few:
        few.setattr(measuring, "FEWEST", 1)
        few.setattr(measuring, "BATCH", 3)
        few.setattr(counting, "BATCHES", (1, 2))
        yield


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    output = tmp_path_factory.mktemp("gpu") / "docs" / "benchmarks-gpu.md"
    arguments = ["--device", "cpu", "--shapes", "tiny", "--layers", "1", "--section-seconds", "0", "--threads", "1"]
    assert main([*arguments, "--output", str(output)]) == 0
    return output.read_text()


def _tables(text):
    """The rows of every table, without their headers."""
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        yield [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_section_is_there_and_nothing_is_left_out(document):
    titles = re.findall(r"^## (.*)$", document, re.MULTILINE)
    measured = [f"tiny shape: {title}" for title in ("conditions", *measuring.SECTIONS)]
    assert titles == [*measured, "Counted operations", "Prediction"]
    assert document.startswith(f"{TITLE}\n\n{MEASURED}\n")


def test_every_row_has_numbers_and_its_conditions(document):
    sections = document.split("\n## ")[1:]
    for section in sections[1:]:
        assert section.split("\n")[2].startswith("*")
        rows = [row for table in _tables(section) for row in table]
        assert rows
        assert all(NUMBER.search(" ".join(row[1:])) for row in rows)
    assert "| command | `make gpu" in sections[0]


def test_explanations_take_longer_than_the_forward_pass_and_count_more(document):
    (times, split), (batches,), _, (launches,) = (
        list(_tables(document.split(f"## tiny shape: {title}\n")[1].split("\n## ")[0])) for title in measuring.SECTIONS
    )
    assert [row[0] for row in times] == ["plain forward", "explanation, top 10", "explanation, top 100"]
    assert all(float(row[2]) > 1 for row in times[1:])
    assert len(split) == 2
    assert [row[0] for row in batches] == [row[0] for row in times]
    operations = [int(row[1].replace(",", "")) for row in launches]
    assert operations[0] < operations[1] < operations[4]


def test_counts_do_not_depend_on_the_run():
    first, second = (counting.measure((1,)) for _ in range(2))
    assert first == second
    forward, operations, waits = first[1, 1]
    assert 0 < forward < operations
    assert waits > 0
    assert "| 1 | 2 |" in counting.report(first)


def test_the_prediction_is_what_its_text_says():
    text = counting.report_prediction({(32, 1): (0, 1000, 100), (32, 16): (0, 1000, 100)})
    rows = {(row[0], row[1]): row[2:] for table in _tables(text) for row in table}
    plain = 1000 * 2 * 6.6e9 / 2.4e12
    found, whole = (float(cell.split()[0]) for cell in rows["Llama-7B", "1"][:2])
    assert found == pytest.approx(plain, rel=0.02)
    assert whole == pytest.approx(found + 8, abs=0.11)
    assert "predicted, not measured" in text.lower()


def test_without_a_gpu_the_page_says_that_none_was_used(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    output = tmp_path / "page.md"
    assert main(["--layers", "1", "--output", str(output)]) == 0
    text = output.read_text()
    assert text.startswith(f"{TITLE}\n\n{NOT_RUN}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Counted operations", "Prediction"]


def test_without_a_gpu_its_numbers_are_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    output = tmp_path / "page.md"
    output.write_text(f"{TITLE}\n\n{MEASURED}\n")
    assert main(["--output", str(output)]) == 1
    assert output.read_text() == f"{TITLE}\n\n{MEASURED}\n"
    assert "name another --output" in capsys.readouterr().err


def test_the_page_in_the_documents_is_one_that_this_writes():
    text = (ROOT / "docs" / "benchmarks-gpu.md").read_text()
    assert text.startswith((f"{TITLE}\n\n{NOT_RUN}\n", f"{TITLE}\n\n{MEASURED}\n"))


def test_what_has_no_time_is_left_out_and_what_is_done_is_kept(tmp_path):
    output = tmp_path / "page.md"
    kept = page.Page(output)

    def fails():
        assert "## first" in output.read_text()
        raise RuntimeError("no memory\nat all")

    sections = [
        ("first", 0, lambda: "## first"),
        ("failing", 0, fails),
        ("endless", 0, lambda: time.sleep(30)),
        ("never", 10, lambda: "## never"),
    ]
    began = time.monotonic()
    page.fill(kept, sections, page.Budget(0.3))
    assert time.monotonic() - began < 5
    text = output.read_text()
    assert text.startswith("## first\n\n## Left out\n")
    assert "- failing: it failed with RuntimeError: no memory\n" in text
    assert "- endless: it was stopped, the time was up\n" in text
    assert "- never: 0 s were left, it takes 10 s or more\n" in text
    assert "## never" not in text
    assert kept.failed


def test_a_model_that_cannot_be_made_is_a_failure_and_the_rest_goes_on(tmp_path, monkeypatch):
    def none(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(measuring, "Measured", none)
    monkeypatch.setattr(counting, "measure", lambda _: {(1, 1): (1, 2, 3), (1, 2): (1, 2, 3)})
    output = tmp_path / "page.md"
    assert main(["--device", "cpu", "--shapes", "tiny", "--layers", "1", "--output", str(output)]) == 1
    text = output.read_text()
    assert "## Prediction" in text
    assert "- tiny shape: conditions: it failed with RuntimeError: no memory" in text
    assert text.count("there is no model") == len(measuring.SECTIONS)


def test_the_tests_of_a_gpu_are_run_without_the_rest_of_the_server(tmp_path):
    """Where there is none they are skipped, which is no failure."""
    written = page.Page(tmp_path / "page.md")
    text = plan.tests(written)
    assert re.search(r"\d+ (skipped|passed)", text)
    assert not written.failed


def test_launches_and_waits_are_those_that_the_profiler_saw():
    class Event:
        def __init__(self, key, count, device, microseconds=0):
            self.key, self.count, self.device_type, self.self_device_time_total = key, count, device, microseconds

    host, gpu = profiling.DeviceType.CPU, profiling.DeviceType.CUDA
    events = [
        Event("cudaLaunchKernel", 5, host),
        Event("cuLaunchKernelEx", 2, host),
        Event("cudaStreamSynchronize", 3, host),
        Event("cudaMemcpyAsync", 9, host),
        Event("aten::mm", 4, host, microseconds=700),
        Event("gemm", 4, gpu, microseconds=700),
        Event("Memcpy DtoH", 1, gpu, microseconds=300),
    ]
    assert profiling.of_events(events) == profiling.Counts(launches=7, waits=3, busy=0.001)


def test_nothing_is_installed_where_nothing_lacks(tmp_path):
    assert prepare.main(tmp_path / "packages") == 0
    assert not (tmp_path / "packages").exists()


def test_what_lacks_comes_from_the_wheels_and_what_lacks_there_is_named(tmp_path, monkeypatch, capsys):
    wheels, folder = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    name = "tqdm-9999-py3-none-any.whl"
    with zipfile.ZipFile(wheels / name, "w") as wheel:
        information = "tqdm-9999.dist-info"
        lines = ["Metadata-Version: 2.1", "Name: tqdm", "Version: 9999", "Requires-Dist: not-there-at-all>=3"]
        wheel.writestr(f"{information}/METADATA", "\n".join([*lines, 'Requires-Dist: other; extra == "more"', ""]))
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
        wheel.writestr("tqdm_of_a_wheel.py", "")
    monkeypatch.setattr(prepare, "_needed", lambda: ["tqdm>=9999", "rich"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert prepare.main(folder) == 1
    said = capsys.readouterr().err
    assert f"tqdm>=9999 (here: {metadata.version('tqdm')})" in said
    assert "pip download" in said
    assert prepare.main(folder, wheels) == 1
    assert (folder / "tqdm_of_a_wheel.py").is_file()
    said = capsys.readouterr().err
    assert "not-there-at-all>=3 (here: none)" in said
    assert "tqdm>=9999" not in said
    assert "other" not in said.replace("another", "")
