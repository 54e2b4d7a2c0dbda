"""A Hub id is served: what the Hub's own client downloads over HTTP, at the revision asked for, under its commit."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from neuron_attribution.errors import FailedPreconditionError
from neuron_attribution_server.model.loading.models import load_engine
from neuron_attribution_server.settings.config import LoadSettings
from neuron_attribution_server.tasks.tasks import AttributeTask, ExplainedToken
from reference.tiny_models import tiny_llama
from service.fakes import PROMPT, SIZES, byte_level_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.process

ID = "tiny/llama"
COMMITS = {"main": "a" * 40, "draft": "b" * 40}
TUNED = "c" * 40
PATH = re.compile(r"(?:/api/models)?/([^/]+/[^/?]+)(?:/(?:revision|resolve|tree)/([^/?]+))?/?([^?]*)")
IN_A_PROCESS = "import json; from model.loading import test_hub; print(json.dumps(test_hub.answers_from_the_hub()))"


class Hub(BaseHTTPRequestHandler):
    """What loading asks of the Hub: a repository's commits and files; `server.folder` holds a folder per commit."""

    def do_GET(self):
        self.server.asked.append(self.path)
        repository, revision, name = PATH.match(self.path).groups(default="")
        commit = COMMITS.get(revision or "main", revision)
        file = self.server.folder / commit / name
        if repository != ID:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif not name:
            self.answer(200, {}, json.dumps({"id": ID, "sha": commit}).encode())
        elif not file.is_file():
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            etag = hashlib.sha256(file.read_bytes()).hexdigest()
            self.answer(200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, file.read_bytes())

    do_HEAD = do_GET

    def answer(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": len(content)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Requests are kept, not printed."""


def save(folder, seed):
    tokenizer = Tokenizer.from_str(byte_level_tokenizer())
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    model = tiny_llama(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.resize_token_embeddings(SIZES.vocabulary)
    model.save_pretrained(folder)


def answer(model, revision=None):
    engine = load_engine(LoadSettings(model, revision))
    ids = Tokenizer.from_str(engine.facts.tokenizer).encode(PROMPT).ids
    (outcome,) = engine.run([AttributeTask(token_ids=tuple(ids), explained=(ExplainedToken(len(ids) - 1),))])
    layers = outcome.explanations[0].layers
    scores = [*layers.attention.tolist(), *layers.ffn.tolist()]
    identity = engine.facts.identity
    return {"name": identity.name, "revision": identity.revision, "token_ids": ids, "scores": scores}


def answers_from_the_hub():
    with pytest.raises(OSError, match="tiny/absent") as refused:
        load_engine(LoadSettings("tiny/absent"))
    with pytest.raises(FailedPreconditionError) as tuned:
        load_engine(LoadSettings(ID, TUNED))
    texts = {"absent": str(refused.value), "tuned": str(tuned.value)}
    return {"main": answer(ID), "draft": answer(ID, "draft"), **texts}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The commits' folder, what a process with nothing cached gets from the Hub, and the paths it asked for."""
    folder = tmp_path_factory.mktemp("hub")
    for seed, commit in enumerate(COMMITS.values()):
        save(folder / commit, seed)
    shutil.copytree(folder / COMMITS["main"], folder / TUNED)
    (folder / TUNED / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny/another"}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.asked = folder, []
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        command = [sys.executable, "-c", IN_A_PROCESS]
        try:
            finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        finally:
            server.shutdown()
            thread.join()
    assert finished.returncode == 0, finished.stderr
    return folder, json.loads(finished.stdout), server.asked


@pytest.mark.parametrize("branch", COMMITS)
def test_a_hub_id_is_served_under_its_commit(served, branch):
    _, answers, _ = served
    assert answers[branch]["name"] == ID
    assert answers[branch]["revision"] == COMMITS[branch]


@pytest.mark.parametrize("branch", COMMITS)
def test_a_hub_id_answers_as_its_folder_does(served, branch, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, answers, _ = served
    expected = answer(str(folder / COMMITS[branch]))
    assert answers[branch]["token_ids"] == expected["token_ids"]
    assert answers[branch]["scores"] == pytest.approx(expected["scores"], rel=0, abs=1e-6)


def test_another_revision_is_asked_for_and_is_another_model(served):
    _, answers, asked = served
    assert any("draft" in path.split("/") for path in asked)
    assert f"/{ID}/resolve/{COMMITS['draft']}/model.safetensors" in asked
    assert answers["main"]["scores"] != pytest.approx(answers["draft"]["scores"], abs=0.01)


def test_an_id_that_the_hub_does_not_have_is_named(served):
    _, answers, _ = served
    assert "tiny/absent is not a local folder" in answers["absent"]


def test_what_an_adapter_names_is_not_fetched(served):
    _, answers, asked = served
    assert answers["tuned"].startswith(f"model refused: {ID} holds an adapter (adapter_config.json): name its base")
    assert not any("tiny/another" in path for path in asked)
