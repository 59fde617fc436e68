"""Preference pairs from a file to arrays: what is held, dropped, counted and refused."""

import numpy as np
import pytest

from gpu_actor.contract.errors import DataError
from support.sample_files import GOOD, load, no_tokenizer, write


def pair(chosen, rejected, prompt=(1, 2)):
    """A tokenised pair."""
    record = {}
    for side, ids in (("chosen", chosen), ("rejected", rejected)):
        record[f"{side}_input_ids"] = [*prompt, *ids]
        record[f"{side}_labels"] = [-100] * len(prompt) + list(ids)
    return record


def test_pairs_are_held_side_by_side(tmp_path):
    path = write(tmp_path, *[pair([3, 4], [5 + i]) for i in range(5)])
    loaded = load(path, no_tokenizer, objective="dpo", val_size=2)
    both = [p for part in (loaded.train, loaded.val) for p in (part[i] for i in range(len(part)))]
    assert (len(loaded.train), len(loaded.val)) == (3, 2)
    assert loaded.train.lengths().tolist() == [7, 7, 7]
    assert sorted(rejected[0][2] for _, rejected in both) == [5, 6, 7, 8, 9]
    (ids, labels), (other_ids, other_labels) = loaded.train[0]
    assert (ids.tolist(), labels.tolist()) == ([1, 2, 3, 4], [-100, -100, 3, 4])
    assert other_ids.tolist()[:2] == [1, 2]
    assert other_labels.tolist() == [-100, -100, other_ids[2]]
    assert load(path, no_tokenizer, objective="cpo").train.select(np.array([4, 0]))[0][1][0].tolist() == [1, 2, 9]


def test_equal_and_cut_pairs_are_dropped_and_counted(tmp_path):
    path = write(
        tmp_path,
        pair([3, 4], [3, 4]),  # equal
        pair([3, 4, 5, 6], [3, 4, 5, 7]),  # equal once they are cut
        pair([3, 4, 5, 6], [3]),  # cut
        pair([3], [4], prompt=[1] * 9),  # no answer is left
        pair([3], [4]),
    )
    loaded = load(path, no_tokenizer, objective="orpo", cutoff_len=5)
    assert (len(loaded.train), loaded.truncated, loaded.dropped) == (2, 3, 3)


def test_a_pair_needs_an_answer_on_both_sides(tmp_path):
    one_sided = {**pair([3], [4]), "rejected_labels": [-100] * 3}
    loaded = load(write(tmp_path, one_sided, pair([3], [4])), no_tokenizer, objective="dpo")
    assert (len(loaded.train), loaded.dropped) == (1, 1)


def test_only_equal_pairs(tmp_path):
    message = r"all 2 records were dropped \(2: both sides of the pair are the same\); check them"
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, pair([3], [3]), pair([4], [4])), no_tokenizer, objective="dpo")
    same = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="both sides of the pair are the same"):
        load(write(tmp_path, {"chosen": same, "rejected": same}), objective="dpo")


@pytest.mark.parametrize("data_format", ["auto", "preference"])
def test_pairs_for_a_supervised_job(tmp_path, data_format):
    path = write(tmp_path, *[{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    with pytest.raises(DataError) as caught:
        load(path, data_format=data_format)
    assert str(caught.value) == (
        f"{path}:1: holds preference pairs, but training.objective is sft, which learns from samples; set the "
        "objective to dpo, cpo, orpo or simpo, or give samples"
    )


def test_samples_for_a_preference_job(tmp_path):
    message = r"holds samples of the format alpaca, but training\.objective is dpo, which learns from preference pairs"
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, GOOD), objective="dpo")
