"""Whether the objects of a deployment mean each other."""

METRIC = "neuron_attribution_queue_tokens"
NAME_LABEL = "app.kubernetes.io/name"
CLUSTER_WIDE = {"Namespace"}


def wiring_problems(manifests):
    """What refers to nothing, as texts."""
    yield from _name_problems(manifests)
    yield from _selector_problems(manifests)
    yield from _port_problems(manifests)
    yield from _volume_problems(manifests)
    yield from _scaling_problems(manifests)


def _name_problems(manifests):
    [namespace] = manifests.of_kind("Namespace")
    for document in manifests.documents:
        metadata = document["metadata"]
        name = f"{document['kind']} {metadata['name']}"
        if document["kind"] not in CLUSTER_WIDE and metadata.get("namespace") != namespace["metadata"]["name"]:
            yield f"{name} is in the namespace {metadata.get('namespace')}"
        if metadata.get("labels", {}).get(NAME_LABEL) != "neuron-attribution":
            yield f"{name} has no label {NAME_LABEL}"
    accounts = {account["metadata"]["name"] for account in manifests.of_kind("ServiceAccount")}
    if manifests.pod["serviceAccountName"] not in accounts:
        yield "the service account is not among the documents"


def _selector_problems(manifests):
    labels = manifests.deployment["spec"]["template"]["metadata"]["labels"].items()
    for name, selector in _selectors(manifests):
        if not selector or not selector.items() <= labels:
            yield f"{name} selects {selector}, which the pods are not"


def _selectors(manifests):
    yield "the deployment", manifests.deployment["spec"]["selector"]["matchLabels"]
    for constraint in manifests.pod["topologySpreadConstraints"]:
        yield f"the spread over {constraint['topologyKey']}", constraint["labelSelector"]["matchLabels"]
    for service in manifests.of_kind("Service"):
        yield "the service", service["spec"]["selector"]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for document in manifests.of_kind(kind):
            yield kind, document["spec"]["selector"]["matchLabels"]
    for policy in manifests.of_kind("NetworkPolicy"):
        yield f"the policy {policy['metadata']['name']}", policy["spec"]["podSelector"]["matchLabels"]


def _port_problems(manifests):
    known = {port["name"] for port in manifests.server["ports"]}
    for name, port in _ports(manifests):
        if port not in known:
            yield f"{name} names the port {port}, which there is not"
    [service] = manifests.of_kind("Service")
    if service["spec"].get("clusterIP") != "None":
        yield "the service is not headless"


def _ports(manifests):
    """Pairs of an object and a port that it names."""
    for service in manifests.of_kind("Service"):
        yield from (("the service", port["targetPort"]) for port in service["spec"]["ports"])
    for policy in manifests.of_kind("NetworkPolicy"):
        ports = [port["port"] for rule in policy["spec"].get("ingress", ()) for port in rule["ports"]]
        yield from ((f"the policy {policy['metadata']['name']}", port) for port in ports)
    for monitor in manifests.of_kind("PodMonitor"):
        yield from (("the monitor", endpoint["port"]) for endpoint in monitor["spec"]["podMetricsEndpoints"])


def _volume_problems(manifests):
    volumes = {volume["name"] for volume in manifests.pod["volumes"]}
    mounts = {mount["name"] for mount in manifests.server["volumeMounts"]}
    yield from (f"the volume {name} is either mounted or there, not both" for name in volumes ^ mounts)
    claims = {claim["metadata"]["name"] for claim in manifests.of_kind("PersistentVolumeClaim")}
    for volume in manifests.pod["volumes"]:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in claims:
            yield f"the claim {claim} is not among the documents"


def _scaling_problems(manifests):
    scalers = [*manifests.of_kind("HorizontalPodAutoscaler"), *manifests.of_kind("ScaledObject")]
    if scalers and "replicas" in manifests.deployment["spec"]:
        yield "the deployment has a number of replicas that each `kubectl apply` would set again"
    for scaler in scalers:
        if scaler["spec"]["scaleTargetRef"]["name"] != manifests.deployment["metadata"]["name"]:
            yield "another deployment is scaled"
    for scaler in manifests.of_kind("HorizontalPodAutoscaler"):
        names = [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]]
        yield from (f"{name} is no metric of the server" for name in names if name != METRIC)
    for scaler in manifests.of_kind("ScaledObject"):
        queries = [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"]]
        yield from (f"{query} asks for another metric" for query in queries if METRIC not in query)
