"""A pod without a cluster: the image's server with a manifest's arguments, volumes and rights, on this host's ports."""

import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import psutil
from deploy.sandbox import Sandbox
from deploy.server_checks import LISTENERS
from grpc_health.v1 import health_pb2, health_pb2_grpc
from neuron_attribution_server.model.loading.sources.demo import demo_folder
from neuron_attribution_server.settings.config import flag_name

PATIENCE = 120
SERVING = health_pb2.HealthCheckResponse.SERVING


class ProjectedFiles:
    """A Secret or ConfigMap as the kubelet lays it out: links through one that is replaced with all the files."""

    def __init__(self, folder, files):
        self.folder = folder
        self._versions = 0
        self.replace_by(files)

    def replace_by(self, files):
        version = self.folder / f"..version-{self._versions}"
        self._versions += 1
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(self.folder / "..data")


@dataclass(frozen=True)
class RunningPod:
    """The server's process, and where its ports by name are on this host."""

    process: psutil.Process
    waiting: subprocess.Popen
    addresses: dict
    probes: dict

    def probe(self, name):
        """Whether a probe of the manifest succeeds, asked as the kubelet asks."""
        with grpc.insecure_channel(self.addresses["health"]) as channel:
            request = health_pb2.HealthCheckRequest(service=self.probes[name]["grpc"].get("service", ""))
            try:
                return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status == SERVING
            except grpc.RpcError:
                return False


@contextmanager
def running_pod(image, manifests, folder, projected=None, **settings):
    """Start a manifest's pod; `projected` has its Secrets and ConfigMaps by volume, `settings` replace arguments."""
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(LISTENERS, _free_ports(len(LISTENERS)), strict=True)}
    listening = {LISTENERS[name]: address for name, address in addresses.items()}
    arguments = _replaced(manifests.server["args"], {**listening, **settings})
    sandbox = pod_sandbox(image, manifests, folder, projected or {})
    with subprocess.Popen(sandbox.command(*image.entrypoint, *arguments)) as waiting:
        try:
            yield RunningPod(_first_process(waiting), waiting, addresses, manifests.server)
        finally:
            waiting.kill()


def pod_sandbox(image, manifests, folder, projected):
    """The container's file system and rights."""
    mounts = {mount["name"]: mount["mountPath"] for mount in manifests.server["volumeMounts"]}
    writable = {mounts[name]: folder / name for name in mounts if name not in projected}
    for path in writable.values():
        path.mkdir()
    model_cache = {f"{image.variables['XDG_CACHE_HOME']}/neuron-attribution": demo_folder().parent}
    return Sandbox(
        writable=writable,
        readable={
            "/opt/venv": image.environment_folder,
            **model_cache,
            **{mounts[name]: files.folder for name, files in projected.items()},
        },
        user=manifests.pod["securityContext"]["runAsUser"],
        environment=image.variables,
        read_only_root=manifests.server["securityContext"]["readOnlyRootFilesystem"],
    )


def _replaced(arguments, settings):
    flags = {flag_name(name): value for name, value in settings.items()}
    pairs = (argument.partition("=") for argument in arguments)
    return [f"{flag}={flags.get(flag, value)}" for flag, _, value in pairs]


def _free_ports(number):
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in with_ports]
    for listener in with_ports:
        listener.close()
    return ports


def _first_process(waiting):
    """The server's own process: bubblewrap waits for it outside, and passes no signals on."""
    children = []
    while not children:
        assert waiting.poll() is None
        children = psutil.Process(waiting.pid).children()
    return children[0]
