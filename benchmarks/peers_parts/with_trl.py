"""TRL's `SFTTrainer`, one job after another: `padding_free`, or `packing` into rows as long as the longest step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from side import Found, Job, run, samples
from trainer_settings import arguments, load, no_tokenizer, timed, with_adapter
from trl import SFTConfig, SFTTrainer


def _train(model: Any, jobs: list[Job], variant: str) -> Iterator[Found]:
    for job in jobs:
        wrapped = with_adapter(model, job)
        rows = samples(job)
        fields = arguments(job) | {"max_length": None, "padding_free": True}
        if variant == "packing":
            packing = {"packing": True, "padding_free": False, "max_length": _longest_step(job, rows)}
            fields |= packing | {"per_device_train_batch_size": 1}
        data = Dataset.from_list(rows)
        yield timed(SFTTrainer(wrapped, SFTConfig(**fields), train_dataset=data, processing_class=no_tokenizer()))
        wrapped.unload()


def _longest_step(job: Job, rows: list[dict[str, list[int]]]) -> int:
    """Tokens of the largest optimizer step."""
    size = job["spec"]["training"]["per_device_train_batch_size"]
    return max(sum(len(row["input_ids"]) for row in rows[at : at + size]) for at in range(0, len(rows), size))


if __name__ == "__main__":
    run(load, _train)
