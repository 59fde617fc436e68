"""Something to report on: jobs of a grid that ran, failed and wait on an orchestrator that there never was."""

import math
import random

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from orchestrator.jobs.job import JobSpec
from orchestrator.report.contents import Contents

HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror=window.hurt=1>{{7*7}} $$\\alpha$$ \u2028"
START = 1_780_000_000.0


def contents(steps=120):
    """Six jobs that succeeded, one that failed, one that waits, all with texts that want to be more than text."""
    random.seed(0)
    views, rows, stays = [], {}, []
    for number, (rank, rate) in enumerate((r, lr) for lr in (1e-4, 3e-4, 1e-3) for r in (8, 16)):
        view = job(f"grid-r{rank}-lr{rate:g}", "SUCCEEDED", r=rank, learning_rate=rate, step=steps)
        views.append(view | {"started_at": START + 20 * number, "finished_at": START + 20 * number + 90})
        speed = 30 * rate / 1e-3 + rank / 8
        rows[view["id"]] = list(metric_rows(steps, speed, START + 20 * number))
        stays += [stay(view["id"], "cpu:0" if number % 2 else HOSTILE, START + 20 * number, START + 20 * number + 90)]
    failed = job("diverged", "FAILED", r=16, learning_rate=1.0, step=7)
    views.append(failed | {"reason": f"the loss became nan {HOSTILE}", "finished_at": START + 60})
    rows[failed["id"]] = list(metric_rows(7, 1, START))
    views.append(job("waits", "QUEUED", r=8, learning_rate=1e-4) | {"waiting_for": f"3.1 GiB {HOSTILE}"})
    views.append(job(HOSTILE, "RUNNING", r=64, learning_rate=1e-4, step=1) | {"unsaved": HOSTILE})
    memory = {place: [(START + 5 * k, 0.4 + 0.3 * (k % 4) / 4) for k in range(40)] for place in ("cpu:0", HOSTILE)}
    timeline = {"now": START + 200, "stays": stays, "memory": memory}
    return Contents(f"Loray at {HOSTILE}", views, rows, timeline)


def job(name, state, *, r, step=0, **training):
    spec = JobSpec(
        name="a",
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        dataset=DatasetConfig(path="/data/a.jsonl", val_size=0.1),
        lora=LoraConfig(r=r),
        training=TrainingConfig(max_steps=120, **training),
        output_dir="/out/a",
    )
    view = {"id": f"id of {name}", "name": name, "state": state, "spec": spec.model_dump(mode="json"), "step": step}
    view |= {"total_steps": 120, "submitted_at": START, "started_at": START, "finished_at": None, "reason": None}
    view |= {"waiting_for": None, "unsaved": "", "truncated": 0, "dropped": 0, "shortened": 0}
    return view | {"unreached": "", "unread_columns": "", "output_dir": "/out/a"}


def stay(job_id, place, since, until):
    return {"job_id": job_id, "place": place, "since": since, "until": until}


def metric_rows(steps, speed, start):
    for step in range(1, steps + 1):
        loss = 0.8 + 2.4 * math.exp(-speed * step / 400) + random.gauss(0, 0.08)
        yield {"step": step, "epoch": step / 40, "loss": loss, "learning_rate": 1e-3, "time": start + 0.7 * step}
        if step % 20 == 0:
            yield {"step": step, "epoch": step / 40, "eval_loss": loss * 1.05, "time": start + 0.7 * step}
