"""Orchestrators that are started with settings of their own, stopped, and started again, on a real Ray cluster."""

import os
from pathlib import Path

import pytest
import torch

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.contract.footprint import weight_bytes
from gpu_actor.model.describe import describe_base
from orchestrator.store.storage_lock import hold
from support.cluster import LONG, ONE_CORE, steps_of, stop_orchestrator
from support.tiny import tiny_model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("ray_cluster")]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path):
    """A base model whose weights are a pickle."""
    folder = tmp_path / "pickled"
    model = tiny_model()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_what_the_operator_did_not_allow_is_refused(orchestrate, make, tmp_path, bases, pickled):
    orchestrator = orchestrate(allowed_roots=[str(tmp_path / "data"), str(bases), str(pickled)])
    (problem,) = orchestrator.call("check", [make("one").model_dump(mode="json")])
    assert problem["field"] == "output_dir"
    assert "outside the allowed folders" in problem["message"]
    inside = make("pickled", base=pickled).model_copy(update={"output_dir": str(tmp_path / "data" / "out")})
    (problem,) = orchestrator.call("check", [inside.model_dump(mode="json")])
    assert problem["field"] == "base_model"
    assert "pickle" in problem["message"]


def test_two_actors_host_two_bases_one_from_a_pickle_and_both_in_four_bits(orchestrate, make, pickled):
    """As the cluster file says."""
    orchestrator = orchestrate(actors=[{**ONE_CORE, "quantization": "nf4"}] * 2, allow_pickle=True)
    jobs = {"a": make("a", steps=LONG), "b": make("b", steps=LONG, base=pickled)}
    orchestrator.submit(*jobs.values())
    for name in jobs:
        orchestrator.wait(name, "RUNNING", until=lambda job: job["step"])
    hosts = {actor["jobs"][0]: actor for actor in orchestrator.actors()}
    assert {name: host["base_model"] for name, host in hosts.items()} == {n: job.base_model for n, job in jobs.items()}
    assert sum(host["memory_limit"] for host in hosts.values()) < os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )
    base = describe_base(jobs["a"].base_model)
    assert hosts["a"]["base_bytes"] == weight_bytes(base, 4, "nf4") < weight_bytes(base, 4)


# -- start and end -----------------------------------------------------------------------------------------------------


def test_a_second_start_attaches_and_after_a_shutdown_the_jobs_go_on_where_they_were(orchestrate, make, tmp_path):
    orchestrator = orchestrate()
    assert orchestrate().call("ping") == orchestrator.call("ping")
    spec = make("one", steps=150, save_steps=1000)
    orchestrator.submit(spec)
    orchestrator.wait("one", "RUNNING", until=lambda job: job["step"] > 5)
    stop_orchestrator()
    (checkpoint,) = Path(spec.output_dir).glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) > 5
    lock = hold(tmp_path / "storage")
    with pytest.raises(ClusterUnavailableError, match=f"another orchestrator .process {os.getpid()}. uses the storage"):
        orchestrate()
    lock.close()
    orchestrator = orchestrate()
    assert orchestrator.call("ping")["storage"] == str(tmp_path / "storage")
    done = orchestrator.wait("one", "SUCCEEDED")
    assert (done["attempt"], done["retries"]) == (2, 0)
    assert steps_of(done) == list(range(1, 151))
