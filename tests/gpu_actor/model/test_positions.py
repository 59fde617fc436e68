"""A base model that looks positions up in a table cannot run a longer sample: refused before it reaches a batch."""

import logging

import pytest

from gpu_actor.contract.errors import DataError
from gpu_actor.data.dataset import load_dataset
from gpu_actor.hosting.preparer import load_data
from gpu_actor.loading.layers import describe_model
from support.engine import family_hooked, make_spec, make_tenant, run_all
from support.tiny import FAMILIES, family_model

TABLES = ("gpt2", "opt", "gptj")
LONG = [{"input_ids": [5] * 40, "labels": [5] * 40}, {"input_ids": [6] * 9, "labels": [6] * 9}]
ONE_STEP = {"max_steps": 1}


def few_positions(family, count=32):
    return {"n_positions" if "n_positions" in FAMILIES[family] else "max_position_embeddings": count}


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_have_a_table(family):
    described = describe_model("tiny", family_model(family))
    assert described.longest_sequence == (512 if family in TABLES else None)
    assert described.from_dict(described.to_dict()) == described


@pytest.mark.parametrize("family", TABLES)
def test_a_sample_beyond_the_table_is_refused(tmp_path, family):
    base = family_hooked(family, **few_positions(family))
    message = r"a sample has 40 tokens, but .* table of 32 positions .*; lower training\.cutoff_len \(1024\) to 32"
    with pytest.raises(DataError, match=message):
        make_tenant(base, make_spec(tmp_path, "long", LONG, training=ONE_STEP))
    cut = make_tenant(base, make_spec(tmp_path, "cut", LONG, training={**ONE_STEP, "cutoff_len": 32}))
    (report,) = run_all(base, [cut]).reports()
    assert (report.state.value, report.truncated) == ("succeeded", 1)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_each_side_of_a_pair_counts_by_itself(tmp_path, side):
    base = family_hooked("gpt2", **few_positions("gpt2"))
    lengths = {"chosen": 20, "rejected": 20}

    def spec(name):
        row = {f"{n}_{part}": [3, *[len(n)] * (k - 1)] for n, k in lengths.items() for part in ("input_ids", "labels")}
        return make_spec(tmp_path, name, [row], training={"objective": "dpo"}, dataset={"format": "preference"})

    make_tenant(base, spec("fits"))
    lengths[side] = 33
    too_long = spec("long")
    with pytest.raises(DataError, match="a sample has 33 tokens"):
        make_tenant(base, too_long)


def test_a_model_that_computes_its_positions_gets_a_remark(tmp_path, caplog):
    base = family_hooked("llama", **few_positions("llama"))

    def untokenised(dataset, training, positions):
        return load_dataset(dataset, training, None, 512, positions)

    with caplog.at_level(logging.WARNING, "gpu_actor.hosting.preparer"):
        load_data(base, make_spec(tmp_path, "long", LONG), untokenised)
    assert "a sample has 40 tokens; the base model was made for 32 positions" in caplog.text
