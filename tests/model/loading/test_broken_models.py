"""Models whose files are missing, damaged, another's or no files at all: refused in one line that names them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.model.loading.sources.model_files import check_files
from neuron_attribution_server.settings.config import LoadSettings
from reference.saved_gguf import saved_gguf
from reference.saved_models import saved
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.process

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
AGAIN = "copy or download it again"
PATIENCE = 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy of a model that can be served, to be damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(whole, tmp_path / "model")


def refusal(model):
    """Why a model is refused: one line that names it."""
    with pytest.raises(FailedPreconditionError) as refused:
        load_engine(LoadSettings(str(model)))
    message = str(refused.value)
    assert message.startswith("model refused: ")
    assert str(model) in message
    assert "\n" not in message
    return message


def cut(name, bytes):
    def damage(folder):
        os.truncate(folder / name, bytes)

    return damage


def holding(name, content):
    def damage(folder):
        (folder / name).write_text(content)

    return damage


def without(*names):
    def damage(folder):
        for name in names:
            (folder / name).unlink()

    return damage


def as_folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def changed(name, **entries):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | entries))

    return damage


def in_shards(content=None):
    """The weights in two files, of which the second is missing."""

    def damage(folder):
        tensors = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        shards = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
        (folder / INDEX).write_text(content or json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))

    return damage


def without_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def without_files(folder):
    for path in folder.iterdir():
        path.unlink()


BROKEN = {
    "weights cut short within the header": (cut(WEIGHTS, 100), f"/{WEIGHTS} is cut short or damaged", AGAIN),
    "weights cut short": (cut(WEIGHTS, 20_000), f"/{WEIGHTS} is cut short or damaged", AGAIN),
    "weights of no bytes": (cut(WEIGHTS, 0), f"/{WEIGHTS} is cut short or damaged", AGAIN),
    "weights that are none": (holding(WEIGHTS, "x" * 5000), f"/{WEIGHTS} is cut short or damaged", AGAIN),
    "a pointer of Git LFS": (holding(WEIGHTS, POINTER), f"/{WEIGHTS} is a pointer of Git LFS", "git lfs pull"),
    "no weights": (without(WEIGHTS), "there is no file *.safetensors", "copy or download"),
    "weights that are a folder": (as_folder(WEIGHTS), "there is no file *.safetensors", "copy or download"),
    "a missing shard": (in_shards(), "/model-00002-of-00002.safetensors, which", f"is missing: {AGAIN}"),
    "an index that is no JSON": (in_shards("{"), f"/{INDEX} is not valid JSON", AGAIN),
    "an index without a map": (in_shards("{}"), f"/{INDEX} has no weight_map", AGAIN),
    "an index of numbers": (in_shards('{"weight_map": {"a": 1}}'), f"/{INDEX} has no weight_map", AGAIN),
    "a missing tensor": (without_tensor, "lacks 1 of the tensors", "such as model.norm.weight"),
    "more layers than there are": (changed(CONFIG, num_hidden_layers=7), "lacks 45 of the tensors", AGAIN),
    "another width": (changed(CONFIG, intermediate_size=96), "mlp.down_proj.weight as 32x40", "asks for 32x96"),
    "another vocabulary": (changed(CONFIG, vocab_size=7), "lm_head.weight as 512x32", "asks for 7x32"),
    "an empty folder": (without_files, "has no file config.json", "name the folder of a model"),
    "a configuration that is a folder": (as_folder(CONFIG), "has no file config.json", "name the folder of a model"),
    "a configuration cut short": (cut(CONFIG, 100), f"/{CONFIG} is not valid JSON", AGAIN),
    "a configuration of no bytes": (cut(CONFIG, 0), f"/{CONFIG} is not valid JSON", AGAIN),
    "a configuration without end": (holding(CONFIG, "[" * 100_000), f"/{CONFIG} is not valid JSON", AGAIN),
    "a configuration that is null": (holding(CONFIG, "null"), f"/{CONFIG} does not hold a JSON object", AGAIN),
    "a text for a number": (
        changed(CONFIG, num_hidden_layers="three"),
        "expected int, got str",
        "config.json describes",
    ),
    "no heads": (changed(CONFIG, num_attention_heads=0), "ZeroDivisionError", "config.json describes no such model"),
    "an unknown activation": (changed(CONFIG, hidden_act="none"), "KeyError: 'none'", "config.json describes"),
    "no tokenizer": (without(TOKENIZER), f"there is no file {TOKENIZER}", "copy or download"),
    "a tokenizer that is a folder": (as_folder(TOKENIZER), f"there is no file {TOKENIZER}", "copy or download"),
    "a tokenizer cut short": (cut(TOKENIZER, 1000), f"/{TOKENIZER} is not valid JSON", AGAIN),
    "a tokenizer of a later version": (changed(TOKENIZER, version="9.0"), "version '9.0'", "tokenizers 0."),
    "a tokenizer of a later kind": (
        changed(TOKENIZER, model={"type": "New"}),
        "Exception: data did not",
        "tokenizers 0.",
    ),
    "a tokenizer that makes its library panic": (
        changed(TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "PanicException",
        "tokenizers 0.",
    ),
    "another file of the tokenizer": (
        holding("special_tokens_map.json", "{"),
        "/special_tokens_map.json is not",
        AGAIN,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_name(folder, case):
    damage, problem, remedy = BROKEN[case]
    damage(folder)
    message = refusal(folder)
    assert problem in message
    assert remedy in message


def test_a_model_without_layers_is_refused(folder):
    changed(CONFIG, num_hidden_layers=0)(folder)
    with pytest.raises(FailedPreconditionError, match="its modules are not where the llama architecture has them"):
        load_engine(LoadSettings(str(folder)))


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory):
    return saved_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf")


BROKEN_GGUF = {
    "no bytes": lambda content: b"",
    "cut short within the magic bytes": lambda content: content[:3],
    "cut short within the header": lambda content: content[:500],
    "cut short within the tensors": lambda content: content[:-100],
    "no GGUF": lambda content: b"x" * 5000,
    "more tensors than it can hold": lambda content: content[:8] + b"\xff" * 6 + content[14:],
    "no tokenizer": lambda content: content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.nothin"),
}


@pytest.mark.parametrize("case", BROKEN_GGUF)
def test_a_broken_gguf_file_is_refused_by_name(whole_gguf, tmp_path, case):
    file = tmp_path / "broken.gguf"
    file.write_bytes(BROKEN_GGUF[case](whole_gguf.read_bytes()))
    assert "copy or download" in refusal(file)


def test_a_gguf_file_that_lacks_a_tensor_is_refused(whole_gguf, tmp_path):
    file = tmp_path / "broken.gguf"
    file.write_bytes(whole_gguf.read_bytes().replace(b"blk.2.ffn_down", b"blk.9.ffn_down"))
    assert "lacks 1 of the tensors" in refusal(file)


def test_a_whole_gguf_file_is_served(whole_gguf):
    assert load_engine(LoadSettings(str(whole_gguf))).facts.family == "llama"


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_device(path):
    path.symlink_to("/dev/zero")


def make_dangling(path):
    path.symlink_to("nowhere")


def make_looping(path):
    path.symlink_to(path.name)


def make_linked_fifo(path):
    os.mkfifo(path.with_name("far"))
    path.symlink_to("far")


NO_FILES = {
    "a FIFO": (os.mkfifo, "is a FIFO"),
    "a link to a FIFO": (make_linked_fifo, "is a FIFO"),
    "a socket": (make_socket, "is a socket"),
    "a device": (make_device, "is a device"),
    "a link to nowhere": (make_dangling, "is a link that leads nowhere"),
    "a link to itself": (make_looping, "is a link that leads nowhere"),
}


@pytest.mark.parametrize("place", ["notes.json", "original/consolidated.safetensors"])
@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_in_a_folder_is_refused_before_anything_is_opened(tmp_path, case, place):
    make, problem = NO_FILES[case]
    (tmp_path / place).parent.mkdir(exist_ok=True)
    make(tmp_path / place)
    with pytest.raises(FailedPreconditionError) as refused:
        load_engine(LoadSettings(str(tmp_path)))
    assert problem in str(refused.value)
    assert str((tmp_path / place).parent) in str(refused.value)


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_neither_file_nor_folder_is_no_model(tmp_path, case):
    make, problem = NO_FILES[case]
    make(tmp_path / "model")
    assert problem in refusal(tmp_path / "model")


def test_a_folder_of_too_many_files_is_refused(tmp_path):
    """As a home folder, named by mistake, may be."""
    for number in range(10_001):
        (tmp_path / str(number)).touch()
    assert "more than 10,000 entries" in refusal(tmp_path)


def test_links_folders_and_what_git_keeps_do_not_matter(folder):
    """The Hub's cache is a folder of links; folders may hold each other through links, however deep."""
    blobs = folder.with_name("blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    (folder / "self").symlink_to(".")
    (folder / "up").symlink_to("..")
    (folder / "notes.json").mkdir()
    (folder / ".git").mkdir()
    make_socket(folder / ".git" / "watch")
    deep = folder
    for _ in range(100):
        deep /= "deep"
    deep.mkdir(parents=True)
    assert load_engine(LoadSettings(str(folder))).facts.family == "llama"


def test_a_folder_that_nobody_may_list_is_left_alone(tmp_path, monkeypatch):
    """As `lost+found` is at the root of a volume. Whoever runs the tests as root may list it all the same."""

    list_all = os.listdir

    def list_some(path):
        if path.name == "lost+found":
            raise PermissionError
        return list_all(path)

    os.mkdir(tmp_path / "lost+found")
    os.mkfifo(tmp_path / "lost+found" / "fifo")
    monkeypatch.setattr("neuron_attribution_server.model.loading.sources.model_files.os.listdir", list_some)
    check_files(tmp_path)


def fifo(folder):
    os.mkfifo(folder / "notes.json")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(cut(WEIGHTS, 20_000), f"/{WEIGHTS} is cut short or damaged"), (fifo, "/notes.json is a FIFO")],
)
def test_a_broken_folder_ends_the_server_with_one_line(folder, damage, problem):
    damage(folder)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "neuron_attribution.cli.main", "serve", "--listen", "localhost:0", "--model"]
    done = subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("neuron-attribution serve: ")]
    assert f"{folder}{problem}" in line
