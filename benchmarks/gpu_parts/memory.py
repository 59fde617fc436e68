"""Memory: predicted against measured, what happens where it runs out, and a base of four bits."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch

from gpu_actor.adapters.shapes import adapter_activation_bytes, adapter_bytes, copy_bytes
from gpu_actor.contract.footprint import activation_bytes
from gpu_actor.contract.report import TenantState
from gpu_actor.device.memory import MemoryMeter
from gpu_actor.model.base_model import BaseModel

from .setting import GIB, Setting
from .speed import engine_rate
from .work import Job, check, engine, lora, same_steps, tenants_of


def memory(setting: Setting) -> None:
    """Predicted peaks against those of the allocator; what it has taken beside them; the first token budget."""
    length = 32 if setting.quick else 512
    with engine(setting, setting.model(setting.large)) as ours:
        base = ours.described
        dtype_bytes = ours.base.dtype.itemsize
        idle = MemoryMeter(setting.device).used()
        for adapters, samples in ((1, 2), (4, 1)) if setting.quick else ((1, 2), (4, 1), (4, 2)):
            if adapters * samples * length > ours.budget:
                continue
            jobs = [Job(f"r{n}", same_steps([length] * samples, 4)) for n in range(adapters)]
            trainer = ours.trainer(jobs, budget=10**6)
            while not trainer.idle:
                trainer.step()
            check(trainer)
            tokens = adapters * samples * length
            predicted = idle + activation_bytes(base, tokens, dtype_bytes, longest=length)
            predicted += sum(
                adapter_bytes(base, lora(job)) + (copy_bytes(base, lora(job)) if setting.device == "cuda" else 0)
                for job in jobs
            )
            predicted += adapter_activation_bytes(base, lora(jobs[0]), tokens, setting.device)
            row = {"what": f"memory, {adapters} jobs of {samples} x {length}", "model": setting.large}
            row |= {"predicted_gib": predicted / GIB, "peak_gib": trainer.meter.highest / GIB}
            row["ratio"] = trainer.meter.highest / predicted
            row["reserved_ratio"] = trainer.meter.memory.reserved() / trainer.meter.highest
            setting.emit(row)
        setting.emit({"what": "first token budget", "model": setting.large, "tokens": ours.budget})


def oom(setting: Setting) -> None:
    """A budget of 200,000 tokens and a sample of 30,000: it costs smaller batches, and at most the one job."""
    budget, long, length = (2_000, 300, 40) if setting.quick else (200_000, 30_000, 512)
    jobs = [Job(f"o{number}", same_steps([length] * 16, 3)) for number in range(2 if setting.quick else 16)]
    with engine(setting, setting.model(setting.large)) as ours:
        trainer = ours.trainer([*jobs, Job("long", same_steps([long], 2))], budget)
        tenants = tenants_of(trainer)
        started = setting.wait()
        while not trainer.idle and setting.left > 3:
            trainer.step()
        ended = setting.wait()
        states = {report.job_id: report.state for report in trainer.reports()}
    reason = next((report.reason for report in trainer.reports() if report.job_id == "long"), None)
    setting.emit(
        {
            "what": "memory that runs out",
            "shortages": trainer.memory_shortages,
            "token_budget": trainer.token_budget,
            "lost": sum(state is TenantState.FAILED for job, state in states.items() if job != "long"),
            "done": sum(tenant.finished for tenant in tenants),
            "long": states["long"].value,
            "reason": reason,
            "seconds": ended - started,
        }
    )


def nf4(setting: Setting) -> None:
    """A base of four bits against the same in bf16, where bitsandbytes is installed."""
    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        setting.emit({"what": "nf4", "skipped": "bitsandbytes is not installed"})
        return
    length = 32 if setting.quick else 512
    jobs = [Job(f"n{number}", same_steps([length] * 4, 4)) for number in range(2)]
    model = setting.model(setting.medium)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with engine(setting, model) as ours:
            plain, whole = engine_rate(setting, ours, jobs), ours.base.model.get_memory_footprint()
            ours.base = BaseModel.load(folder, setting.device, "bfloat16", quantization="nf4")
            rate, stored = engine_rate(setting, ours, jobs), ours.base.model.get_memory_footprint()
        files = sum(path.stat().st_size for path in Path(folder).iterdir())
    row = {"what": "nf4", "model": setting.medium, "tokens_per_s": rate, "ratio": rate / plain}
    setting.emit({**row, "bytes_ratio": stored / whole, "file_gib": files / GIB})
    torch.cuda.empty_cache()
