"""What every pod must be: the restricted Pod Security Standard, and stricter."""

import re

POD = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "securityContext.runAsNonRoot": True,
    "securityContext.seccompProfile.type": "RuntimeDefault",
    "hostNetwork": None,
    "hostPID": None,
    "hostIPC": None,
}
CONTAINER = {
    "securityContext.allowPrivilegeEscalation": False,
    "securityContext.readOnlyRootFilesystem": True,
    "securityContext.capabilities.drop": ["ALL"],
    "securityContext.capabilities.add": None,
    "securityContext.privileged": None,
    "securityContext.runAsNonRoot": None,
    "securityContext.runAsUser": None,
    "securityContext.seccompProfile": None,
}
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
EXACT_IMAGE = re.compile(r"[\w./-]+:\d+\.\d+\.\d+(-[\w.]+)?(@sha256:[0-9a-f]{64})?")


def security_problems(manifests):
    """What falls short, as texts."""
    pod = manifests.pod
    yield from _different(pod, POD, "the pod")
    for identity in ("runAsUser", "runAsGroup", "fsGroup"):
        if not pod["securityContext"].get(identity):
            yield f"{identity} is not a number over 0"
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        yield from _container_problems(container)
    for volume in pod["volumes"]:
        if not VOLUMES & set(volume):
            yield f"the volume {volume['name']} is of another kind than {sorted(VOLUMES)}"
    for account in manifests.of_kind("ServiceAccount"):
        yield from _different(account, {"automountServiceAccountToken": False}, "the service account")
    for namespace in manifests.of_kind("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace does not enforce the restricted standard"
    for policy in manifests.of_kind("NetworkPolicy"):
        yield from _policy_problems(policy)


def _container_problems(container):
    yield from _different(container, CONTAINER, container["name"])
    if not EXACT_IMAGE.fullmatch(container["image"]):
        yield f"the image {container['image']} is not of an exact version"
    for kind in ("requests", "limits"):
        for resource in ("cpu", "memory"):
            if resource not in container["resources"].get(kind, {}):
                yield f"{container['name']} has no {resource} in its {kind}"
    for port in container["ports"]:
        if "hostPort" in port:
            yield f"the port {port['name']} is one of the node"


def _policy_problems(policy):
    name, spec = policy["metadata"]["name"], policy["spec"]
    for rules, ends in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(rules, ()):
            yield from (f"the policy {name} has no {key} in {rules}" for key in (ends, "ports") if not rule.get(key))
    for rule in spec.get("ingress", ()):
        # Probes come from the node, which is let in always.
        if "health" in [port["port"] for port in rule.get("ports", ())]:
            yield f"the policy {name} opens the health port to others than the node"


def _different(document, expected, name):
    for path, value in expected.items():
        found = document
        for key in path.split("."):
            found = found.get(key) if found is not None else None
        if found != value:
            yield f"{path} of {name} is {found}, not {value}"
