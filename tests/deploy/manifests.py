"""The Kubernetes manifests as kustomize builds them, and their parts."""

import copy
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
MODEL = """
- op: add
  path: /spec/template/spec/containers/0/args/-
  value: --model=demo
"""

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is missing; .ci/run installs it")


@dataclass(frozen=True)
class Manifests:
    """The documents of one build."""

    documents: tuple

    def of_kind(self, kind):
        return [document for document in self.documents if document["kind"] == kind]

    @property
    def deployment(self):
        [deployment] = self.of_kind("Deployment")
        return deployment

    @property
    def pod(self):
        """The pod's specification."""
        return self.deployment["spec"]["template"]["spec"]

    @property
    def server(self):
        """The one container."""
        [container] = self.pod["containers"]
        return container

    def copy(self):
        """One to change."""
        return Manifests(copy.deepcopy(self.documents))


def build(folder):
    """What `kubectl kustomize` makes of a folder. Raises CalledProcessError, with kustomize's words in `stderr`."""
    finished = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    assert finished.stderr == "", "kustomize warns"
    return Manifests(tuple(yaml.safe_load_all(finished.stdout)))


def build_overlay(name):
    return build(KUBERNETES / "overlays" / name)


def build_combination(folder, components):
    """The base with a model and some components, as an overlay of somebody's own in an empty folder."""
    here = os.path.relpath(KUBERNETES, folder.resolve())
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{here}/base"],
        "components": [f"{here}/components/{name}" for name in components],
        "patches": [{"target": {"kind": "Deployment"}, "patch": MODEL}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return build(folder)
