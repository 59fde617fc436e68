"""Steps and the order of samples are those of Trainer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.contract.config import TrainingConfig
from gpu_actor.training.sample_order import DataCursor
from support.oracle import Padded
from support.tiny import tiny_model


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_every_sample_once_per_epoch_ragged_tails_included(samples, batch, accumulation, epochs):
    training = TrainingConfig(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=float(epochs)
    )
    cursor = DataCursor(training, samples)
    steps = math.ceil(math.ceil(samples / batch) / accumulation)
    assert cursor.total_steps == steps * epochs
    for epoch in range(epochs):
        plans = [cursor.step(epoch * steps + i) for i in range(steps)]
        assert {plan.epoch for plan in plans} == {epoch}
        seen = [i for plan in plans for group in plan.micro_batches for i in group]
        assert sorted(seen) == list(range(samples))
        assert all(len(group) <= batch for plan in plans for group in plan.micro_batches)
    assert cursor.epoch_after(cursor.total_steps) == epochs


@pytest.mark.parametrize("epochs", [2, 1.4])
@pytest.mark.slow
def test_the_order_is_that_of_trainer(tmp_path, epochs):
    """The rows that an unmodified Trainer feeds its model, in their order."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": [i + 3, i + 4], "labels": [i + 3, i + 4]} for i in range(23)]
    fed = []

    class Recording(Padded):
        def __call__(self, batch):
            fed.append(tuple(row["input_ids"][0] - 3 for row in batch))
            return super().__call__(batch)

    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "seed": 11}
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=epochs,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    Trainer(model=tiny_model(), args=arguments, train_dataset=rows, data_collator=Recording()).train()
    cursor = DataCursor(TrainingConfig(num_train_epochs=float(epochs), **settings), len(rows))
    ours = [group for step in range(cursor.total_steps) for group in cursor.step(step).micro_batches]
    assert ours == fed[: len(ours)]
    assert len(ours) >= len(fed) - 1  # Trainer's loader may read one batch ahead


def test_without_shuffling_the_order_is_the_files():
    cursor = DataCursor(TrainingConfig(shuffle=False, per_device_train_batch_size=4), 6)
    assert cursor.step(0).micro_batches == ((0, 1, 2, 3),)
    assert cursor.step(3).micro_batches == ((4, 5),)


def test_resuming_at_any_step_reads_the_same():
    whole = DataCursor(TrainingConfig(per_device_train_batch_size=2), 9)
    plans = [whole.step(i) for i in range(whole.total_steps)]
    assert [
        DataCursor(TrainingConfig(per_device_train_batch_size=2), 9).step(i) for i in range(whole.total_steps)
    ] == plans
