"""Faults under a fixed seed on two real nodes: nothing lost, nothing different, nothing left behind."""

import json
import subprocess
import sys

import pytest

from support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_whatever_goes_wrong_every_job_ends_with_the_adapter_that_it_makes_alone(tmp_path):
    file = tmp_path / "chaos.json"
    command = [sys.executable, "benchmarks/chaos.py", "--quick", "--seed", "5", "--faults", "6", "--jobs", "7"]
    done = subprocess.run([*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads(file.read_text())
    assert sum(result["faults"].values()) >= 5
    assert result["jobs"] >= 7
    assert [result[name] for name in ("lost", "charged", "differing", "files", "processes")] == [[]] * 5
