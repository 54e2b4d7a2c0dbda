"""Prints the alert rules as the Prometheus operator takes them.

python deploy/kubernetes/prometheus_rule.py > deploy/kubernetes/components/monitoring/prometheusrule.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parents[1] / "prometheus" / "rules.yaml"
NAME = "neuron-attribution"


def prometheus_rule(rules: dict[str, Any]) -> dict[str, Any]:
    """The custom resource with the groups of a Prometheus rule file."""
    metadata = {"name": NAME, "namespace": NAME, "labels": {"app.kubernetes.io/name": NAME}}
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata, "spec": rules}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stay readable."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


if __name__ == "__main__":
    print("# Generated from deploy/prometheus/rules.yaml by deploy/kubernetes/prometheus_rule.py.")
    resource = prometheus_rule(yaml.safe_load(RULES.read_text()))
    print(yaml.dump(resource, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120), end="")
