"""What the manifests tell the server, against what the server knows."""

from dataclasses import fields
from pathlib import PurePosixPath

from neuron_attribution_server.services import LIVENESS, SERVICE
from neuron_attribution_server.settings.config import ConfigurationError, ServerConfig, flag_name, read_config
from neuron_attribution_server.stopping import LATE_SECONDS

FLAGS = {flag_name(setting.name) for setting in fields(ServerConfig)}
LISTENERS = {"grpc": "listen", "health": "health_listen", "metrics": "metrics_listen"}
FILES = ("tls_certificate", "tls_key", "tls_client_authority", "token_file")
# A drained server's last steps take a moment of their own.
SPARE_SECONDS = 5


def given_settings(container):
    """The texts of the flags, by setting."""
    pairs = [argument.removeprefix("--").partition("=")[::2] for argument in container["args"]]
    return {flag.replace("-", "_"): value for flag, value in pairs}


def configuration(container):
    """The settings as the server itself reads them. Raises ConfigurationError."""
    return read_config(given_settings(container), {})


def server_problems(manifests):
    """What does not fit, as texts."""
    container = manifests.server
    yield from _environment_problems(container)
    try:
        config = configuration(container)
    except ConfigurationError as error:
        yield str(error)
        return
    yield from _port_problems(container)
    yield from _probe_problems(container)
    yield from _file_problems(container)
    yield from _drain_problems(manifests, config)
    if config.threads > int(container["resources"]["limits"]["cpu"]):
        yield "the model has more threads than the container has cores"


def flag_problems(manifests):
    """Flags that the server does not know, or that are given twice, as texts."""
    flags = [argument.partition("=")[0] for argument in manifests.server["args"]]
    yield from (f"{flag} is no flag of the server" for flag in flags if flag not in FLAGS)
    yield from (f"{flag} is given more than once" for flag in set(flags) if flags.count(flag) > 1)


def _environment_problems(container):
    if "command" in container:
        yield "the image's entry point is replaced"
    # The client's command line reads some of the same variables, and these would then be meant for it, too.
    yield from (f"{each['name']} is a variable where a flag belongs" for each in container.get("env", ()))


def _port_problems(container):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    if ports.keys() != LISTENERS.keys():
        yield f"the ports are {sorted(ports)}, not {sorted(LISTENERS)}"
    given = given_settings(container)
    for name, port in ports.items():
        address = given.get(LISTENERS.get(name))
        if address != f"0.0.0.0:{port}":
            yield f"the port {name} is {port}, but the server listens on {address}"


def _probe_problems(container):
    [health] = [port["containerPort"] for port in container["ports"] if port["name"] == "health"] or [None]
    asked = {"startupProbe": SERVICE, "readinessProbe": SERVICE, "livenessProbe": LIVENESS}
    for name, service in asked.items():
        probe = container.get(name, {}).get("grpc")
        if probe != {"port": health, "service": service}:
            yield f"{name} asks {probe}, not {service} on the health port"


def _file_problems(container):
    """Files must come from mounted folders: Kubernetes does not update a file that is mounted by itself."""
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    yield from (f"{each['mountPath']} has a subPath" for each in container["volumeMounts"] if "subPath" in each)
    for setting, value in given_settings(container).items():
        if setting in FILES and str(PurePosixPath(value).parent) not in mounts:
            yield f"{flag_name(setting)}: no volume is mounted where {value} should be"


def _drain_problems(manifests, config):
    least = config.drain_delay + config.grace + LATE_SECONDS + SPARE_SECONDS
    grace = manifests.pod["terminationGracePeriodSeconds"]
    if grace < least:
        yield f"terminationGracePeriodSeconds is {grace}, less than the {least:g} that a stop may take"
    if config.drain_delay <= 0:
        yield "calls that come while endpoints are updated are refused: there is no drain delay"
    startup = manifests.server["startupProbe"]
    patience = startup["failureThreshold"] * startup["periodSeconds"]
    if manifests.deployment["spec"]["progressDeadlineSeconds"] <= patience:
        yield f"a rollout fails before the {patience} seconds that loading may take are over"
