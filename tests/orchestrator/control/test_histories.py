"""Many simulated histories: calls that are lost, doubled and late, deaths between any two awaits, full disks."""

import gc
import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from support.histories.history import play
from support.histories.job_table import JobTable
from support.repository import ROOT

SHARED_MEMORY = Path("/dev/shm")
FIXED = 2000  # that `make test` plays: less than a tenth of a processor second each
REPLAYED = 10  # of them, in a process that hashes otherwise
SEARCHED = "LORAY_HISTORIES"  # as many new ones are played, half by each of two workers
ONE = "LORAY_HISTORY"  # the number of one that is to be seen again


@pytest.fixture(scope="module")
def table():
    """The job table of all histories, in memory where the system has such a disk."""
    inside = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    logging.disable(logging.CRITICAL)  # what goes wrong is meant to
    with tempfile.TemporaryDirectory(dir=inside) as folder:
        table = JobTable(folder)
        yield table
        table.close()
    logging.disable(logging.NOTSET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the dead leave coroutines that nobody has awaited
        gc.collect()


def played(seed, table):
    """What happened in a history, and what is recorded of it."""
    with pytest.MonkeyPatch.context() as patch:
        told = play(seed, table, patch)
    return [*told, *map(repr, table.rows("SELECT job_id, time, message FROM events ORDER BY seq"))]


HALVES = [pytest.param(half, marks=pytest.mark.xdist_group(f"histories-{half}")) for half in (0, 1)]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("half", HALVES)  # for each of two workers
def test_what_must_always_be_so_is_so_in_every_history(table, half):
    for seed in range(half, FIXED, 2):
        played(seed, table)


@pytest.mark.skipif(SEARCHED not in os.environ, reason=f"plays new histories, as many as {SEARCHED} says")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("worker", [0, 1])
def test_and_in_new_ones(table, worker):
    for _ in range(int(os.environ[SEARCHED]) // 2):
        played(random.SystemRandom().getrandbits(40), table)


@pytest.mark.slow
def test_histories_can_be_seen_again_in_another_process(table, tmp_path):
    script = f"""
import sys
import test_histories
table = test_histories.JobTable(sys.argv[1])
for seed in range({REPLAYED}):
    print('\\n'.join(test_histories.played(seed, table)))
"""
    paths = [Path(__file__).parent, ROOT / "tests", ROOT]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [line for seed in range(REPLAYED) for line in played(seed, table)]


@pytest.mark.skipif(ONE not in os.environ, reason=f"shows the history whose number is in {ONE}")
def test_one_history(table):
    print("\n".join(played(int(os.environ[ONE]), table)))
