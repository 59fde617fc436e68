"""Orchestrators that are started with settings of their own, stopped, and started again, on a real Ray cluster."""

import os
from pathlib import Path

import pytest
import torch

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.contract.footprint import weight_bytes
from gpu_actor.model.describe import describe_base
from orchestrator.store.storage_lock import hold
from support.cluster import LONG, steps_of, stop_orchestrator, wait_until
from support.tiny import tiny_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("ray_cluster")]


# -- settings ----------------------------------------------------------------------------------------------------------


def test_two_actors_host_two_bases(orchestrate, make):
    orchestrator = orchestrate(actors=[{}, {}])
    orchestrator.submit(make("a", steps=LONG), make("b", steps=LONG, base="tiny-b"))
    orchestrator.wait("a", "RUNNING", until=lambda job: job["step"])
    orchestrator.wait("b", "RUNNING", until=lambda job: job["step"])
    assert {tuple(actor["jobs"]) for actor in orchestrator.actors()} == {("a",), ("b",)}
    assert sum(actor["memory_limit"] for actor in orchestrator.actors()) < os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )


def test_an_actor_keeps_its_base_in_four_bits_when_the_cluster_file_says_so(orchestrate, make):
    orchestrator = orchestrate(actors=[{"quantization": "nf4"}])
    job = make("small", steps=3)
    orchestrator.submit(job)
    orchestrator.wait("small", "SUCCEEDED")
    (actor,) = orchestrator.actors()
    base = describe_base(job.base_model)
    assert actor["base_bytes"] == weight_bytes(base, 4, "nf4") < weight_bytes(base, 4)


def test_pickled_weights_are_read_only_where_the_operator_allows_it(orchestrate, make, tmp_path):
    folder = tmp_path / "pickled"
    model = tiny_model()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    job = make("pickled", steps=2, base=folder)
    orchestrator = orchestrate()
    (problem,) = orchestrator.call("check", [job.model_dump(mode="json")])
    assert "pickle" in problem["message"]
    stop_orchestrator()
    orchestrator = orchestrate(allow_pickle=True)
    orchestrator.submit(job)
    orchestrator.wait("pickled", "SUCCEEDED")


def test_files_outside_the_allowed_folders_are_refused(orchestrate, make, tmp_path, bases):
    orchestrator = orchestrate(allowed_roots=[str(tmp_path / "data"), str(bases)])
    (problem,) = orchestrator.call("check", [make("one").model_dump(mode="json")])
    assert problem["field"] == "output_dir"
    assert "outside the allowed folders" in problem["message"]


def test_a_base_that_no_actor_may_host_is_refused(orchestrate, make, bases):
    orchestrator = orchestrate(actors=[{"base_model": str(bases / "tiny-b")}])
    wait_until(lambda: [actor["state"] for actor in orchestrator.actors()] == ["ready"])
    (problem,) = orchestrator.call("check", [make("one").model_dump(mode="json")])
    assert problem["field"] == "base_model"
    assert "gives every one to another base model" in problem["message"]


# -- start and end -----------------------------------------------------------------------------------------------------


def test_after_a_shutdown_the_jobs_go_on_where_they_were(orchestrate, make):
    orchestrator = orchestrate()
    spec = make("one", steps=150, save_steps=1000)
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"] > 5)
    stop_orchestrator()
    (checkpoint,) = Path(spec.output_dir).glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) > 5
    orchestrator = orchestrate()
    done = orchestrator.wait("one", "SUCCEEDED")
    assert (done["attempt"], done["retries"]) == (2, 0)
    assert steps_of(done) == list(range(1, 151))


def test_starting_again_attaches_to_the_one_that_runs(orchestrate):
    assert orchestrate().call("ping") == orchestrate().call("ping")


def test_a_storage_in_use_is_refused_in_words(orchestrate, tmp_path):
    lock = hold(tmp_path / "storage")
    with pytest.raises(ClusterUnavailableError, match=f"another orchestrator .process {os.getpid()}. uses the storage"):
        orchestrate()
    lock.close()
    assert orchestrate().call("ping")["storage"] == str(tmp_path / "storage")
