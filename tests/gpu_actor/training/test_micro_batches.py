"""The micro-batches of a job: their dropout seeds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actor.contract.config import TrainingConfig
from gpu_actor.data.dataset import LoadedDataset
from gpu_actor.data.samples import SampleSet
from gpu_actor.training.micro_batches import MicroBatches
from gpu_actor.training.sample_order import DataCursor


def seeds_of_a_run(samples, batch, accumulation, epochs=3):
    """The dropout seeds of every sequence of every optimizer step."""
    ids = np.full(2 * samples, 5, dtype=np.int32)
    data = SampleSet(ids, ids, np.arange(samples + 1) * 2)
    training = TrainingConfig(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=epochs
    )
    made = MicroBatches(training, None, LoadedDataset(data, data.select(np.array([], int)), 0, 0, 2), None)
    cursor = DataCursor(training, samples)
    steps = [made.of_step(number, cursor.step(number), 1) for number in range(cursor.total_steps)]
    return [seed for step in steps for part in step for seed in part.dropout_seeds]


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 5))
def test_no_dropout_mask_is_used_twice(samples, batch, accumulation):
    seeds = seeds_of_a_run(samples, batch, accumulation)
    assert len(seeds) == 3 * samples
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_last_step_of_an_epoch_has_seeds_of_its_own(accumulation):
    """Five samples, four to a step: the second step has one micro-batch, which must not reuse a mask of the first."""
    seeds = seeds_of_a_run(5, 1, accumulation)
    assert len(set(seeds)) == 15
