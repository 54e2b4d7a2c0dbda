"""The RayJob, checked in parts, as no package carries KubeRay's schema.

Its own fields are checked by the tables below, its pods by the schemas of Kubernetes, its commands by those who read
them.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from checkout import PINS
from deploy.schemas import VERSIONS
from deploy.security_checks import security_problems
from neuron_attribution.cli.main import _parser

ROOT = Path(__file__).parents[2]
JOB, CLAIM, POLICY = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "rayjob.yaml").read_text())
SPEC = JOB["spec"]
CLUSTER = SPEC["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
GROUPS = [HEAD, *WORKERS]
CONTAINERS = [group["template"]["spec"]["containers"][0] for group in GROUPS]

# KubeRay v1: the fields that these documents may have, and of what type each is.
RAY_JOB = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": dict,
}
RAY_CLUSTER = {"rayVersion": str, "headGroupSpec": dict, "workerGroupSpecs": list}
HEAD_GROUP = {"rayStartParams": dict, "template": dict}
WORKER_GROUP = HEAD_GROUP | {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}


@pytest.mark.parametrize(
    ("document", "fields"),
    [(SPEC, RAY_JOB), (CLUSTER, RAY_CLUSTER), (HEAD, HEAD_GROUP), *((group, WORKER_GROUP) for group in WORKERS)],
    ids=["job", "cluster", "head", "workers"],
)
def test_every_field_is_known_and_of_its_type(document, fields):
    assert {name: type(value) for name, value in document.items()} == {name: fields[name] for name in document}


def test_nobody_else_reaches_the_cluster():
    """Every pod of the job is one that the policy selects, and its port has the name that the head's has."""
    labels = POLICY["spec"]["podSelector"]["matchLabels"]
    for group in GROUPS:
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    own, operator = POLICY["spec"]["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert [port["port"] for port in operator["ports"]] == ["dashboard"]
    assert "dashboard" in {port["name"] for port in CONTAINERS[0]["ports"]}


def test_the_job_is_one_of_kuberay():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert SPEC["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode"}
    for group in WORKERS:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_and_the_claim_are_valid(version):
    pods = [{"apiVersion": "v1", "kind": "Pod"} | group["template"] for group in GROUPS]
    for document in [*pods, CLAIM, POLICY]:
        kubernetes_validate.validate(json.loads(json.dumps(document)), version, strict=True)


@pytest.mark.parametrize("group", GROUPS, ids=["head", "workers"])
def test_pods_are_restricted(group):
    manifests = SimpleNamespace(pod=group["template"]["spec"], of_kind=lambda kind: [])
    assert list(security_problems(manifests)) == []


def test_the_command_is_one_of_ours():
    program, *words = shlex.split(SPEC["entrypoint"])
    arguments = _parser(words[0]).parse_args(words)
    assert program == "neuron-attribution"
    assert arguments.ray == "auto"
    mounted = {mount["mountPath"] for mount in CONTAINERS[0]["volumeMounts"]}
    assert {str(arguments.prompts.parent), str(arguments.output.parent)} <= mounted


def test_the_parameters_are_options_of_ray_start():
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"]
    known = re.findall(r"--[a-z-]+", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {f"--{name}" for group in GROUPS for name in group["rayStartParams"]} <= set(known)


def test_versions_are_those_that_are_tested():
    assert CLUSTER["rayVersion"] == PINS["ray"]
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    assert {container["image"] for container in CONTAINERS} == {re.search(r"tag (\S+-ray)$", dockerfile, re.M).group(1)}
    [claim] = [
        volume["persistentVolumeClaim"]
        for volume in HEAD["template"]["spec"]["volumes"]
        if len(volume) > 1 and "persistentVolumeClaim" in volume
    ]
    assert claim["claimName"] == CLAIM["metadata"]["name"]
