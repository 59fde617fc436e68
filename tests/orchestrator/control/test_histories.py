"""Many simulated histories: calls that are lost, doubled and late, deaths between any two awaits, full disks."""

import gc
import os
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from support.histories.history import make_template, play, quick_database
from support.repository import ROOT

SHARED_MEMORY = Path("/dev/shm")
FIXED = 24  # that `make test` plays: two thirds of a processor second each
SEARCHED = "LORAY_HISTORIES"  # as many new ones are played beside them
ONE = "LORAY_HISTORY"  # the number of one that is to be seen again


@pytest.fixture(scope="module")
def place():
    """A folder, in memory where the system has such a disk, and a job table to begin with."""
    inside = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=inside) as folder:
        make_template(Path(folder) / "template.db")
        yield Path(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the dead leave coroutines that nobody has awaited
        gc.collect()


def played(seed, place):
    """What happened in a history."""
    with pytest.MonkeyPatch.context() as patch:
        quick_database(patch)
        return play(seed, place, place / "template.db", patch)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_what_must_always_be_so_is_so_in_every_history(place):
    for seed in range(FIXED):
        played(seed, place)
    for _ in range(int(os.environ.get(SEARCHED, 0))):
        played(random.SystemRandom().getrandbits(40), place)


@pytest.mark.slow
def test_a_history_can_be_seen_again_in_another_process(place):
    script = "import sys, test_histories as t, pathlib; print('\\n'.join(t.played(3, pathlib.Path(sys.argv[1]))))"
    paths = [Path(__file__).parent, ROOT / "tests", ROOT]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script, place], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == played(3, place)


@pytest.mark.skipif(ONE not in os.environ, reason=f"shows the history whose number is in {ONE}")
def test_one_history(place):
    print("\n".join(played(int(os.environ[ONE]), place)))
