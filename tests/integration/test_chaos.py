"""`benchmarks/chaos.py` on a small scale: everything goes wrong on a cluster of two nodes of its own."""

import json
import subprocess
import sys

import pytest

from support.repository import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SEED = 861  # of a plan with each of these once, and one restart of the actors
FAULTS = ["delete output", "fill disk", "flip bit", "hang up", "kill controller"]


def test_nothing_is_lost_or_different_or_left_behind(tmp_path):
    file = tmp_path / "result.json"
    options = ["--quick", "--seed", str(SEED), "--faults", str(len(FAULTS)), "--jobs", "3", "--json", str(file)]
    command = [sys.executable, "benchmarks/chaos.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_text())
    assert result["faults"] == dict.fromkeys(FAULTS, 1)
    assert result["jobs"] >= 3
    assert [result[what] for what in ("lost", "charged", "differing", "files", "processes")] == [[]] * 5
