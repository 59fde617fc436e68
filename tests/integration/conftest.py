"""A real Ray cluster that all tests of a worker share, orchestrators on it, jobs, and a `loray serve`."""

import contextlib
import os
import shutil
import socket
import tempfile

import pytest

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from orchestrator.cluster.ray_internals import any_agent_port
from orchestrator.jobs.job import JobSpec, QueueConfig
from support.cluster import YIELDING, own_orchestrators, start_orchestrator
from support.command import LORAY, Home
from support.repository import ROOT
from support.s3_server import BUCKET, environment, s3_server
from support.sample_tokenizers import few_words_tokenizer
from support.tiny import tiny_model, token_rows, write_rows

os.environ["RAY_AUTH_MODE"] = "disabled"  # only ever in tests
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(YIELDING)
os.environ.update({"RAY_prestart_worker_first_driver": "0"})  # as `loray serve` and `run` do

AGENT_PORT = 52365
with (
    socket.socket() as _taken
):  # where an S3 server may be started later: the cluster's processes know it from the start
    _taken.bind(("127.0.0.1", 0))
    S3_PORT = _taken.getsockname()[1]
# Under a policy that takes nobody off: what is tested is the machinery. test_scheduling.py has the default one.
FIFO = {"policy": "fifo-memory", "tick_seconds": 0.1}


@pytest.fixture(scope="package")
def ray_cluster():
    """One node with two CPUs, in this machine's shortest temporary folder (sockets have short names).

    Tests may kill orchestrators and actors on it, but nothing of Ray itself.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="lr", dir="/tmp")
    s3 = environment(S3_PORT)
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        with any_agent_port():
            ray.init(
                address="local",
                num_cpus=2,
                num_gpus=0,
                include_dashboard=True,
                log_to_driver=False,
                object_store_memory=80 * 2**20,
                _temp_dir=folder,
                runtime_env={"env_vars": {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", **s3}},
            )
        yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3():
    """A real S3 server that the cluster's processes know."""
    with s3_server(S3_PORT) as server:
        yield server


@pytest.fixture(scope="package")
def bases(tmp_path_factory):
    """Two tiny base models, of which the first has a tokenizer."""
    folder = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate(("tiny-a", "tiny-b")):
        tiny_model(seed=seed).save_pretrained(folder / name)
    few_words_tokenizer().save_pretrained(folder / "tiny-a")
    return folder


@pytest.fixture(scope="package")
def shared_storage(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def orchestrator(ray_cluster, shared_storage):
    """The orchestrator that many tests share, with one actor; jobs may write below the temporary folder, and to S3."""
    roots = [tempfile.gettempdir(), f"s3://{BUCKET}/team"]
    orchestrator = start_orchestrator(shared_storage, scheduler=FIFO, allowed_roots=roots)
    yield orchestrator
    orchestrator.clear()
    assert orchestrator.call("cluster")["controller"]["trouble"] is None


@pytest.fixture
def orchestrate(ray_cluster, tmp_path):
    """Starts an orchestrator of the test's own; further calls attach to it or start it again."""
    with own_orchestrators(tmp_path / "storage", scheduler=FIFO) as start:
        yield start


@pytest.fixture
def make(tmp_path, bases):
    """Makes a job of 16 short samples."""

    def make(name, steps=4, base="tiny-a", priority=0, max_retries=2, r=4, rows=None, **training):
        data = tmp_path / "data" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        write_rows(data, rows or token_rows(16, seed=sum(map(ord, name))))
        settings = {"max_steps": steps, "per_device_train_batch_size": 2, "cutoff_len": 64, "save_steps": 5, **training}
        return JobSpec(
            name=name,
            base_model=str(bases / base),
            dataset=DatasetConfig(path=str(data), format="tokens"),
            lora=LoraConfig(r=r),
            training=TrainingConfig(**settings),
            queue=QueueConfig(priority=priority, max_retries=max_retries),
            output_dir=str(tmp_path / "out" / name),
        )

    return make


@pytest.fixture(scope="package")
def served():
    """The home of a `loray serve` that tests share whose programs come to a cluster that is there already.

    Ray's one port for the agent that takes jobs is in use when it starts, as it is where somebody else runs Ray. Its
    actor leaves a core to the commands, which would else wait for a job that never ends.
    """
    with Home(**YIELDING) as home, socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection of just now is no listener
        with contextlib.suppress(OSError):  # then a Ray does run here
            taken.bind(("", AGENT_PORT))
            taken.listen()
        cluster = home.path / "cluster.yaml"
        roots = f"allowed_roots: [{tempfile.gettempdir()}, {ROOT}]"
        cluster.write_text(f"actors: [{{cpu_threads: 1}}]\n{roots}\nhttp: {{{roots}}}\n")
        home.serving = home.start(*LORAY, "serve", "--cluster", cluster, "--http", "0", log="serve")
        home.wait_for("Ctrl-C stops it", home.serving, log="serve")
        taken.close()
        yield home
