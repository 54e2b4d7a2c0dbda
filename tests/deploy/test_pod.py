"""Pods as the manifests describe them, without a cluster: real servers in the image's file system, read-only, with the
manifests' arguments, volumes and user, asked as the kubelet and callers ask."""

import hashlib
import signal
from urllib.request import urlopen

import pytest
from deploy.manifests import build_combination, build_overlay, needs_kubectl
from deploy.pods import PATIENCE, ProjectedFiles, pod_sandbox, running_pod
from deploy.sandbox import needs_sandbox
from neuron_attribution import Client, UnauthenticatedError, UnavailableError
from service.certificates import Authority
from service.servers import eventually

pytestmark = [needs_kubectl, needs_sandbox]

SECURED = ("client-certificates", "model-cache", "monitoring", "tls", "tokens", "tracing")


def token_lines(*tokens):
    return "".join(f"{token}-tenant {hashlib.sha256(token.encode()).hexdigest()}\n" for token in tokens).encode()


def until(true):
    assert any(eventually(true) for _ in range(4))


def test_the_demo_starts_serves_and_drains(image, tmp_path):
    with running_pod(image, build_overlay("cpu-demo"), tmp_path, drain_delay="2") as pod:
        until(lambda: pod.probe("livenessProbe"))
        until(lambda: pod.probe("startupProbe"))
        assert pod.probe("readinessProbe")
        with Client(pod.addresses["grpc"], timeout=PATIENCE) as client:
            assert client.attribute("The capital of France is").explanations[0].target.token.text == " Paris"
        metrics = urlopen(f"http://{pod.addresses['metrics']}/metrics", timeout=PATIENCE).read().decode()
        assert "\nneuron_attribution_queue_tokens 0.0\n" in metrics
        pod.process.send_signal(signal.SIGTERM)
        until(lambda: not pod.probe("readinessProbe"))
        assert pod.waiting.wait(PATIENCE) == 0


def test_secrets_are_read_and_read_again(image, tmp_path):
    """With certificates for both sides and tokens, laid out and replaced as the kubelet does."""
    folders = [tmp_path / name for name in ("overlay", "volumes", "files", "tls", "client-authority", "tokens")]
    for folder in folders:
        folder.mkdir()
    overlay, volumes, files, *projections = folders
    authority = Authority(files)
    pair, caller = authority.issue("server"), authority.issue("caller")
    secrets = {"tls.crt": pair.certificate.read_bytes(), "tls.key": pair.key.read_bytes()}
    contents = (secrets, {"ca.crt": authority.certificate.read_bytes()}, {"tokens": token_lines("old")})
    projected = {
        folder.name: ProjectedFiles(folder, content) for folder, content in zip(projections, contents, strict=True)
    }
    settings = {"drain_delay": "0", "trace_endpoint": "http://127.0.0.1:9"}
    with running_pod(image, build_combination(overlay, SECURED), volumes, projected, **settings) as pod:
        until(lambda: pod.probe("startupProbe"))
        trusted = {"root_certificates": authority.certificate, "timeout": PATIENCE}
        own = {"certificate": caller.certificate, "key": caller.key}
        with Client(pod.addresses["grpc"], **trusted, token="old") as client, pytest.raises(UnavailableError):
            client.get_model()
        with Client(pod.addresses["grpc"], **trusted, **own, token="old") as client:
            client.get_model()
            projected["tokens"].replace_by({"tokens": token_lines("new")})
            until(lambda: is_refused(client))
        with Client(pod.addresses["grpc"], **trusted, **own, token="new") as client:
            assert client.get_model().model.name == "SmolLM2-135M-Instruct"


def is_refused(client):
    try:
        client.get_model()
    except UnauthenticatedError:
        return True
    return False


def test_the_sandbox_lets_a_pod_write_to_its_volumes_only(image, tmp_path):
    """That the servers above ran says nothing unless this holds."""
    sandbox = pod_sandbox(image, build_overlay("cpu-demo"), tmp_path, {})
    for folder in ("/cache", "/tmp"):
        sandbox.run("touch", f"{folder}/file")
    for folder in ("/", "/opt", "/opt/venv", "/etc", "/var/tmp", "/home"):
        with pytest.raises(AssertionError, match="Read-only file system"):
            sandbox.run("touch", f"{folder}/file")
    assert sandbox.run("id", "-u").strip() == str(image.user)
