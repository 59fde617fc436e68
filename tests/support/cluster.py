"""An orchestrator of its own on the Ray cluster of a test module."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import pytest

ONE_CORE = {"cpu_threads": 1}  # an actor that leaves a core to the tests; more are no use to a tiny model
# Jobs that train as long as a test looks at something else take what the other worker's tests leave over.
YIELDING = {"RAY_worker_niceness": "5"}
LONG = 100_000  # optimizer steps: far more than a test waits for
PATIENCE = 240.0  # seconds: a busy machine takes long to start a process and to load a model


class Orchestrator:
    """An orchestrator under test, and short words for what is asked of it."""

    def __init__(self, handle, config):
        self.handle, self.config = handle, config

    def call(self, method, *arguments, timeout=PATIENCE):
        import ray

        return ray.get(getattr(self.handle, method).remote(*arguments), timeout=timeout)

    def submit(self, *jobs, request_id=None):
        """Submit `JobSpec`s; returns the ids."""
        answer = self.call("submit", [job.model_dump(mode="json") for job in jobs], request_id or os.urandom(8).hex())
        assert answer["problems"] == []
        return [job["id"] for job in answer["accepted"]]

    def wait(self, ref, *states, timeout=PATIENCE, until=None):
        """The job once it is in one of the states and `until(job)` holds."""
        deadline = time.monotonic() + timeout
        while True:
            job = self.call("get_job", ref)
            if (not states or job["state"] in states) and (until is None or until(job)):
                return job
            over = ("SUCCEEDED", "FAILED", "CANCELLED")
            gone_wrong = job["state"] in over and states and not set(states) & {job["state"]}
            if gone_wrong or time.monotonic() > deadline:
                events = [event["message"] for event in self.call("events", ref)]
                pytest.fail(f"waited for {states}, but the job is {job}; events: {events}; {self.call('cluster')}")
            time.sleep(0.05)

    def events(self, ref):
        return [event["message"] for event in self.call("events", ref)]

    def actors(self):
        return [actor for actor in self.call("cluster")["actors"] if actor["state"] != "empty"]

    def clear(self):
        """Cancel every live job, and wait until none is left."""
        for job in self.live():
            self.call("cancel", job["id"])
        wait_until(lambda: not self.live())

    def live(self):
        return [job for job in self.call("list_jobs") if job["state"] in ("QUEUED", "RUNNING", "PAUSED")]


def wait_until(condition, timeout=PATIENCE, every=0.05):
    """Wait for a condition to become true, asked every so many seconds, and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{condition} did not come true within {timeout} s"
        time.sleep(every)
    return value


def orchestrator_runs():
    """The orchestrator's handle; None if there is none."""
    import ray

    try:
        return ray.get_actor("loray-controller", namespace="loray")
    except ValueError:
        return None


def stop_orchestrator():
    """End the orchestrator, if there is one, and wait until its name is free."""
    import ray

    handle = orchestrator_runs()
    if handle is None:
        return
    ray.get(handle.shutdown.remote(), timeout=90)
    wait_until(lambda: not [a for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "loray"])


def start_orchestrator(storage, **fields):
    """Start an orchestrator, or attach to the one that runs."""
    from orchestrator.cluster.cluster_config import ClusterConfig
    from orchestrator.control.controller_actor import start_or_attach_controller

    anywhere = tempfile.gettempdir()  # the folders of all tests lie there
    usual = {"scheduler": {"tick_seconds": 0.1}, "allowed_roots": [anywhere], "actors": [ONE_CORE]}
    config = ClusterConfig.model_validate({"storage": str(storage), **usual, **fields})
    return Orchestrator(start_or_attach_controller(config), config)


@contextlib.contextmanager
def own_orchestrators(storage, **defaults):
    """A function that starts or attaches to an orchestrator with the given fields of the cluster file.

    Nothing may have troubled the last one, which is stopped in the end.
    """
    stop_orchestrator()
    started = []

    def orchestrate(**fields):
        started.append(start_orchestrator(storage, **{**defaults, **fields}))
        return started[-1]

    yield orchestrate
    if started and orchestrator_runs():
        assert started[-1].call("cluster")["controller"]["trouble"] is None
    stop_orchestrator()


def steps_of(job):
    """The numbers of the optimizer steps in a job's metrics."""
    lines = (Path(job["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def processes(name):
    """Process ids of the living actors whose name starts so, from Ray itself."""
    return {actor.name: actor.pid for actor in _living() if actor.name and actor.name.startswith(name)}


def processes_of(class_name):
    """Process ids of the living actors of a class, from Ray itself."""
    return [actor.pid for actor in _living() if actor.class_name == class_name]


def _living():
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address
    return list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)


def checkpointed(job):
    """A condition: the checkpoints in a job's output folder."""
    return lambda _=None: list(Path(job["output_dir"]).glob("checkpoint-*"))
