"""Manifests against the schemas of Kubernetes and of the operators, where a field nobody knows is an error."""

import json
from functools import cache

import kubernetes_validate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from pydantic import ValidationError

# The oldest that docs/deploying.md promises, and the newest known.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
CUSTOM = {
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
}


def schema_problems(manifests):
    """What is wrong with each document, as texts."""
    return [problem for document in manifests.documents for problem in _problems(document)]


def _problems(document):
    model = CUSTOM.get((document["apiVersion"], document["kind"]))
    if model is not None:
        return _custom_problems(document, model)
    text = json.dumps(document)
    return [problem for version in VERSIONS for problem in _kubernetes_problems(text, version)]


@cache
def _kubernetes_problems(text, version):
    """Cached: builds have most of their documents in common."""
    document = json.loads(text)
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{document['kind']} ({version}): {'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def _custom_problems(document, model):
    try:
        model.model_validate(document, extra="forbid", by_alias=True, by_name=False)
    except ValidationError as error:
        return [f"{document['kind']}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return []
