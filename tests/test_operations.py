"""What people run and read where Loray operates: the Kubernetes manifest, the image, the unit, the list of messages."""

import ast
import json
import re

import jsonschema
import pytest
import yaml

from orchestrator.cluster.cluster_file import load_cluster_config
from support.repository import ROOT

SCHEMA = json.loads((ROOT / "tests" / "fixtures" / "kuberay" / "raycluster.json").read_text())
PARTS = {part["kind"]: part for part in yaml.safe_load_all((ROOT / "configs" / "kuberay.yaml").read_text())}


def strict(schema):
    """Unknown fields are refused, as `kubectl` does; numbers may stand for text where Kubernetes takes both."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict):
        found["additionalProperties"] = False
    return found


VALIDATOR = jsonschema.Draft202012Validator(strict(SCHEMA))


def test_the_manifest_is_a_raycluster_by_kuberays_own_schema():
    cluster = PARTS["RayCluster"]
    assert [error.message for error in VALIDATOR.iter_errors(cluster)] == []
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    try:
        assert [error.message for error in VALIDATOR.iter_errors(cluster)]  # the check sees a slip of the pen
    finally:
        del cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePulPolicy"]


def test_the_manifest_guards_ray_trains_not_on_the_head_and_keeps_its_state():
    spec = PARTS["RayCluster"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"]
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={spec['rayVersion']}\n" in constraints
    claim = PARTS["PersistentVolumeClaim"]["metadata"]["name"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounted.keys() == volumes.keys()
        assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim
        assert mounted["data"] == "/data"
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_the_cluster_file_in_the_manifest_is_one(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(PARTS["ConfigMap"]["data"]["cluster.yaml"])
    config = load_cluster_config(path)
    mounts = PARTS["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(config.storage.startswith(f"{mount['mountPath']}/") for mount in mounts)
    assert len(config.actors) == PARTS["RayCluster"]["spec"]["workerGroupSpecs"][0]["maxReplicas"]


def test_what_the_image_copies_is_there_and_let_in():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"constraints.txt", "orchestrator", "gpu_actor"} <= set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"'\.\[([\w,]+)\]'", (ROOT / "Dockerfile").read_text())[1].split(",")
    project = (ROOT / "pyproject.toml").read_text()
    assert [extra for extra in extras if f"\n{extra} = [" not in project] == []


def literals():
    """Every text in the code, `…` for what is put in."""
    for package in ("orchestrator", "gpu_actor"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


MESSAGES = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshoot.md").read_text(encoding="utf-8"), re.M)


def test_every_message_that_is_explained_is_one_that_the_code_prints():
    known = list(literals())
    assert len(MESSAGES) > 25
    assert [message for message in MESSAGES if not any(message in text for text in known)] == []


@pytest.mark.parametrize("page", ["operate.md", "troubleshoot.md"])
def test_pages_are_found_and_lead_to_what_is_there(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (ROOT / "docs" / target).exists(), target
    assert f"docs/{page}" in (ROOT / "README.md").read_text(encoding="utf-8")
