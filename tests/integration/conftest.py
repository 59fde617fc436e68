"""A real Ray cluster for the tests of a module."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # only ever in tests
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_cluster():
    """One node with two CPUs, in this machine's shortest temporary folder (sockets have short names)."""
    import ray

    folder = tempfile.mkdtemp(prefix="lr", dir="/tmp")
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=True,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        _temp_dir=folder,
        runtime_env={"env_vars": {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"}},
    )
    yield folder
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
