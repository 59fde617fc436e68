"""The command that serves trained adapters by vLLM, and what vLLM does not take.

Its checks were read in vLLM 0.33.0 (`vllm/lora/peft_helper.py`, `vllm/lora/utils.py`, `vllm/config/lora.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpu_actor.adapters.peft_config import lack_of_weights, read_peft_config
from gpu_actor.contract.errors import AdapterError, LorayError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.questions import Step
from gpu_actor.paths import file_names
from gpu_actor.paths.locations import resolve_base_model
from gpu_actor.paths.urls import is_url
from orchestrator.results.trained_job import TrainedJob

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM allows for `--max-lora-rank`."""


def vllm_command(jobs: Sequence[TrainedJob], step: Step) -> list[str]:
    """The words of a `vllm serve` that serves a base model with adapters.

    Args:
        jobs: The jobs, at least one, all of one base model.
        step: Which step of each: `latest` is the finished adapter, a number a checkpoint.

    Raises:
        LorayError: The jobs have several base models, share a name, or one has no adapter that vLLM takes.
    """
    bases = list(dict.fromkeys(job.base_model for job in jobs))
    if len(bases) > 1:
        raise LorayError(f"one vLLM serves one base model, and these jobs have {', '.join(bases)}; give them apart")
    names = [job.name for job in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LorayError(f"{twice!r} is given twice; a name is how a request says which adapter it wants")
    folders = [_adapter_folder(job, step) for job in jobs]
    rank = max(_rank(job, folder) for job, folder in zip(jobs, folders, strict=True))
    return [
        *("vllm", "serve", resolve_base_model(bases[0]), "--enable-lora"),
        *("--max-lora-rank", str(next(allowed for allowed in MAX_LORA_RANKS if allowed >= rank))),
        *("--max-loras", str(len(jobs))),
        *("--lora-modules", *(f"{name}={folder}" for name, folder in zip(names, folders, strict=True))),
    ]


def _adapter_folder(job: TrainedJob, step: Step) -> Path:
    if is_url(job.folder):
        raise AdapterError(f"{job.name}: {job.folder} is no folder here; download it, and give that folder instead")
    folder = Path(job.folder)
    if isinstance(step, int):
        folder = folder / file_names.checkpoint_folder(step)
    elif step == "best":
        raise LorayError("--step best: a finished job's adapter is its best one already; give latest, or a number")
    if not (folder / file_names.ADAPTER_CONFIG).is_file():
        hint = "" if isinstance(step, int) else "; it has not ended, but --step N serves its checkpoint of step N"
        raise AdapterError(f"{job.name}: no adapter in {folder}{hint}")
    if lack := lack_of_weights(folder):
        raise AdapterError(f"{job.name}: {folder} {lack}")
    return folder


def _rank(job: TrainedJob, folder: Path) -> int:
    """The largest rank of an adapter.

    Raises:
        AdapterError: vLLM does not take it.
    """
    lora = read_peft_config(folder)
    rank = max(lora.r, *lora.rank_pattern.values(), 1)
    if refusal := _refusal(lora, rank):
        raise AdapterError(
            f"{job.name}: vLLM {refusal}; merge it with `loray export {job.name} --merged DIR`, and serve DIR"
        )
    return rank


def _refusal(lora: LoraConfig, rank: int) -> str | None:
    """Why vLLM does not take an adapter; None where it does."""
    if lora.peft_type != "LORA":
        return f"has no {lora.peft_type} adapters"
    if lora.use_dora:
        return "does not support DoRA"
    if rank > MAX_LORA_RANKS[-1]:
        return f"takes ranks up to {MAX_LORA_RANKS[-1]}, and this one has {rank}"
    return None
