"""Names of the files in an output folder, which the actor writes and the orchestrator looks for."""

from __future__ import annotations

import re

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKSUMS = "checksums.json"  # of the adapter's files, and of those of a checkpoint
PICKLED_ADAPTER = "adapter_model.bin"  # of old PEFT releases; Loray does not read it
JOB = "job.yaml"
METRICS = "metrics.jsonl"
TRACKED = "tracked-*.json"  # how much of the metrics an experiment tracker has, a file for each
CHECKPOINTS = "checkpoint-*"
BEST = "checkpoint-best-"  # and a step: the adapter alone, at the lowest evaluation loss until then
CHECKPOINT_DRAFTS = ".checkpoint-*.tmp"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def tracked(tracker: str) -> str:
    """Name of the file that says how much of the metrics a tracker has."""
    return TRACKED.replace("*", tracker)


def checkpoint_folder(step: int) -> str:
    """Name of the folder that holds the checkpoint of an optimizer step."""
    return f"checkpoint-{step}"


def checkpoint_step(name: str) -> int | None:
    """The optimizer step whose checkpoint a folder of this name holds; None: it is no checkpoint's name."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None
