"""A second Ray node on this machine that sees none of the tests' folders: a mount of its own lies over them."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

LABEL = "where=second"
_SCRIPT = """
set -e
mount -t tmpfs none "$1"
mkdir -p "$2"
cp -r "$3"/. "$2"
exec "$4" -m ray.scripts.scripts start --address="$5" --num-cpus=1 --num-gpus=0 --labels="$6" \
    --object-store-memory=80000000 --dashboard-agent-listen-port=0 --disable-usage-stats --block
"""


@contextlib.contextmanager
def second_node(hidden, models):
    """Joins a node to the cluster that this process is connected to.

    Args:
        hidden: A folder that is empty there.
        models: A folder below it that has a copy of the same content there, as the node's own.
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory(prefix="second-", dir="/tmp") as folder:
        shutil.copytree(models, Path(folder, "models"))
        words = [str(hidden), str(models), f"{folder}/models", sys.executable, address, LABEL]
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RAY_DISABLE_WARNING": "1"},
                start_new_session=True,
            )
        try:
            yield process
        finally:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            process.wait()


def can_hide_folders():
    """Whether this user may mount: elsewhere these tests have nothing to show."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
