"""The checks themselves: what is broken on purpose is found, and named."""

import pytest
from deploy.manifests import build_overlay, needs_kubectl
from deploy.schemas import schema_problems
from deploy.security_checks import security_problems
from deploy.server_checks import flag_problems, server_problems
from deploy.wiring_checks import wiring_problems

pytestmark = needs_kubectl

POD = "Deployment.spec.template.spec"
SERVER = f"{POD}.containers.0"
REMOVED = object()

# Where, the value that is put there, the check that must find it, and a part of what it says.
MUTATIONS = [
    (f"{SERVER}.readinessProb", {}, schema_problems, "readinessProb"),
    (f"{SERVER}.ports.0.containerPort", "50051", schema_problems, "not of type 'integer'"),
    (f"{POD}.terminationGracePeriod", 100, schema_problems, "terminationGracePeriod"),
    ("Deployment.apiVersion", "extensions/v1beta1", schema_problems, "Couldn't find schema"),
    ("PodMonitor.spec.podMetricsEndpoints.0.intervall", "15s", schema_problems, "intervall"),
    ("PodMonitor.spec.podMetricsEndpoints.0.interval", "15 s", schema_problems, "match pattern"),
    ("PrometheusRule.spec.groups.0.rules.0.exp", "up", schema_problems, "exp:"),
    ("PrometheusRule.spec.groups.0.rules.0.expr", REMOVED, schema_problems, "Field required"),
    ("HorizontalPodAutoscaler.spec.maxReplica", 8, schema_problems, "maxReplica"),
    (f"{POD}.securityContext.runAsNonRoot", REMOVED, security_problems, "runAsNonRoot"),
    (f"{POD}.securityContext.runAsUser", 0, security_problems, "runAsUser"),
    (f"{POD}.securityContext.seccompProfile.type", "Unconfined", security_problems, "seccompProfile"),
    (f"{POD}.automountServiceAccountToken", True, security_problems, "automountServiceAccountToken"),
    (f"{POD}.enableServiceLinks", REMOVED, security_problems, "enableServiceLinks"),
    (f"{POD}.hostNetwork", True, security_problems, "hostNetwork"),
    (f"{POD}.volumes.0", {"name": "cache", "hostPath": {"path": "/"}}, security_problems, "of another kind"),
    (f"{SERVER}.securityContext.readOnlyRootFilesystem", False, security_problems, "readOnlyRootFilesystem"),
    (f"{SERVER}.securityContext.allowPrivilegeEscalation", REMOVED, security_problems, "allowPrivilegeEscalation"),
    (f"{SERVER}.securityContext.capabilities.drop", ["NET_RAW"], security_problems, "capabilities.drop"),
    (f"{SERVER}.securityContext.capabilities.add", ["SYS_ADMIN"], security_problems, "capabilities.add"),
    (f"{SERVER}.securityContext.privileged", True, security_problems, "privileged"),
    (f"{SERVER}.securityContext.runAsUser", 0, security_problems, "runAsUser"),
    (f"{SERVER}.image", "neuron-attribution:latest", security_problems, "exact version"),
    (f"{SERVER}.image", "neuron-attribution", security_problems, "exact version"),
    (f"{SERVER}.resources.limits.memory", REMOVED, security_problems, "no memory in its limits"),
    (f"{SERVER}.ports.0.hostPort", 50051, security_problems, "of the node"),
    ("ServiceAccount.automountServiceAccountToken", REMOVED, security_problems, "the service account"),
    ("Namespace.metadata.labels", {}, security_problems, "restricted"),
    ("NetworkPolicy.spec.ingress.0.from", REMOVED, security_problems, "no from in ingress"),
    ("NetworkPolicy.spec.ingress.0.ports.0.port", "health", security_problems, "opens the health port"),
    ("NetworkPolicy.spec.egress.0.to", REMOVED, security_problems, "no to in egress"),
    (f"{SERVER}.args.0", "--listne=0.0.0.0:50051", flag_problems, "--listne is no flag"),
    (f"{SERVER}.args.0", "--grace=60", flag_problems, "more than once"),
    (f"{SERVER}.args.6", "--grace=soon", server_problems, "'soon' is not a number"),
    (f"{SERVER}.args.0", "--listen=localhost:50051", server_problems, "listens on localhost:50051"),
    (f"{SERVER}.args.0", "--listen=0.0.0.0:50053", server_problems, "listens on 0.0.0.0:50053"),
    (f"{SERVER}.args.9", "--tls-certificate=/etc/tls.crt", server_problems, "no volume is mounted"),
    (f"{SERVER}.args.3", "--threads=64", server_problems, "more threads"),
    (f"{SERVER}.command", ["python"], server_problems, "entry point"),
    (f"{SERVER}.env", [{"name": "NEURON_ATTRIBUTION_GRACE", "value": "60"}], server_problems, "a variable"),
    (f"{SERVER}.ports.1.containerPort", 50053, server_problems, "the port health is 50053"),
    (f"{SERVER}.ports.2.name", "prometheus", server_problems, "the ports are"),
    (f"{SERVER}.livenessProbe.grpc.service", REMOVED, server_problems, "livenessProbe asks"),
    (f"{SERVER}.readinessProbe.grpc.service", "liveness", server_problems, "readinessProbe asks"),
    (f"{SERVER}.startupProbe.grpc.port", 50051, server_problems, "startupProbe asks"),
    (f"{SERVER}.volumeMounts.2.subPath", "tls.crt", server_problems, "subPath"),
    (f"{POD}.terminationGracePeriodSeconds", 75, server_problems, "less than the 89"),
    (f"{SERVER}.args.5", "--drain-delay=0", server_problems, "no drain delay"),
    ("Deployment.spec.progressDeadlineSeconds", 600, server_problems, "a rollout fails"),
    ("Deployment.spec.selector.matchLabels", {"app": "other"}, wiring_problems, "the deployment selects"),
    ("Service.spec.selector", {"app": "other"}, wiring_problems, "the service selects"),
    ("Service.spec.ports.0.targetPort", "grcp", wiring_problems, "names the port grcp"),
    ("Service.spec.clusterIP", REMOVED, wiring_problems, "not headless"),
    ("PodDisruptionBudget.spec.selector.matchLabels", {}, wiring_problems, "PodDisruptionBudget selects"),
    ("PodMonitor.spec.selector.matchLabels", {"app": "other"}, wiring_problems, "PodMonitor selects"),
    ("PodMonitor.spec.podMetricsEndpoints.0.port", "http", wiring_problems, "names the port http"),
    ("NetworkPolicy.spec.podSelector.matchLabels", {"app": "other"}, wiring_problems, "the policy neuron-attribution"),
    ("NetworkPolicy.spec.ingress.0.ports.0.port", "grcp", wiring_problems, "names the port grcp"),
    ("PersistentVolumeClaim.metadata.name", "other", wiring_problems, "the claim"),
    ("PersistentVolumeClaim.metadata.namespace", "default", wiring_problems, "in the namespace default"),
    ("Service.metadata.labels", {}, wiring_problems, "no label"),
    (f"{POD}.serviceAccountName", "default", wiring_problems, "service account"),
    (f"{POD}.volumes.0.name", "other", wiring_problems, "the volume"),
    ("Deployment.spec.replicas", 2, wiring_problems, "number of replicas"),
    ("HorizontalPodAutoscaler.spec.scaleTargetRef.name", "other", wiring_problems, "another deployment"),
    ("HorizontalPodAutoscaler.spec.metrics.0.pods.metric.name", "queue", wiring_problems, "no metric"),
]


@pytest.fixture(scope="module")
def sound():
    return build_overlay("autoscaled")


@pytest.mark.parametrize(
    ("where", "value", "check", "said"), MUTATIONS, ids=[f"{each[0]}-{each[3]}" for each in MUTATIONS]
)
def test_what_is_broken_is_found(sound, where, value, check, said):
    broken = sound.copy()
    change(broken, where, value)
    found = set(check(broken)) - set(check(sound))
    assert any(said in problem for problem in found), found


def change(manifests, where, value):
    """Put a value at a path that begins with a document's kind; the path's last key may be new."""
    kind, *keys, last = where.split(".")
    target = manifests.of_kind(kind)[0]
    for key in keys:
        target = target[int(key) if isinstance(target, list) else key]
    if value is REMOVED:
        del target[last]
    else:
        target[int(last) if isinstance(target, list) else last] = value
