"""Two real Ray nodes that share no folder: what jobs read goes to the second one, and what it makes comes home."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from support.cluster import checkpointed, processes, wait_until
from support.interrupted import without_time
from support.second_node import LABEL, can_hide_folders, second_node
from support.tiny import token_rows

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("ray_cluster"),
    pytest.mark.skipif(not can_hide_folders(), reason="needs the right to mount"),
]


@pytest.fixture
def models(tmp_path, bases):
    """One base model under two names, each of which has an actor of its own; and one that the second node lacks."""
    folder = tmp_path / "models"
    for name in ("on-head", "on-second"):
        shutil.copytree(bases / "tiny-a", folder / name)
    return folder


def seen_there(pid, path):
    """A path as the process of an actor sees it."""
    return Path(f"/proc/{pid}/root{path}")


def test_a_job_on_a_node_without_our_disk_is_the_same_to_the_byte(orchestrate, make, models, bases, tmp_path):
    with second_node(tmp_path.parent, models):
        there = {"node_labels": LABEL, "cpu_threads": 1}
        orchestrator = orchestrate(
            actors=[
                {"base_model": str(models / "on-head"), "cpu_threads": 1},
                {"base_model": str(models / "on-second"), **there},
                {"base_model": str(bases / "tiny-b"), **there},
            ],
        )

        def job(name, model, start=None, **fields):
            spec = make(name, rows=token_rows(16, seed=1), save_steps=20, **fields)
            lora = spec.lora.model_copy(update={"init_adapter": start})
            return spec.model_copy(update={"base_model": str(models / model), "lora": lora})

        first = job("first", "on-second")
        orchestrator.wait(orchestrator.submit(first)[0], "SUCCEEDED")
        lonely = make("lonely", base="tiny-b")
        here, away = (job(name, name, first.output_dir, steps=120) for name in ("on-head", "on-second"))
        ids = orchestrator.submit(here, away, lonely)
        wait_until(checkpointed(away.model_dump()))
        ((_, pid),) = processes("on-second@").items()
        assert seen_there(pid, models / "on-second").is_dir()
        assert not seen_there(pid, tmp_path / "data").exists()
        assert not seen_there(pid, away.output_dir).exists()
        os.kill(pid, signal.SIGKILL)

        done = [orchestrator.wait(job_id, "SUCCEEDED") for job_id in ids[:2]]
        assert [job["attempt"] for job in done] == [1, 2]
        wait_until(lambda: not checkpointed(away.model_dump())())
        left, same = (set(os.listdir(each.output_dir)) for each in (away, here))
        assert left == same
        weights = [(Path(each.output_dir) / "adapter_model.safetensors").read_bytes() for each in (here, away)]
        assert weights[0] == weights[1]
        assert without_time(Path(away.output_dir)) == without_time(Path(here.output_dir))
        orchestrator.wait(ids[2], until=lambda job: "has no such folder" in f"{job['waiting_for']} {job['reason']}")
        orchestrator.clear()
