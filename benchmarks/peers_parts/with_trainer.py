"""PEFT and transformers' `Trainer`, one job after another: `padded`, or `flattening` by its padding-free collator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from side import Found, Job, run, samples
from trainer_settings import arguments, load, no_tokenizer, timed, with_adapter
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments


def _train(model: Any, jobs: list[Job], variant: str) -> Iterator[Found]:
    for job in jobs:
        wrapped = with_adapter(model, job)
        collator = DataCollatorWithFlattening() if variant == "flattening" else DataCollatorForSeq2Seq(no_tokenizer())
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in samples(job)]
        settings = TrainingArguments(**arguments(job), remove_unused_columns=False)
        yield timed(Trainer(wrapped, settings, train_dataset=rows, data_collator=collator))
        wrapped.unload()


if __name__ == "__main__":
    run(load, _train)
