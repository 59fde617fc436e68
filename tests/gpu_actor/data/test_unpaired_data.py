"""Answers with a label: in every format that has a prompt, whatever the label looks like; what is refused."""

import numpy as np
import pytest

from gpu_actor.batch.unpaired import mismatched
from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import DataError
from gpu_actor.data.dataset import load_dataset
from gpu_actor.data.samples import UnpairedSet, digest
from support.sample_files import TOKENIZER, VOCAB, load, no_tokenizer, write

SKY = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]
NIGHT = [{"role": "user", "content": "At night?"}, {"role": "assistant", "content": "Black."}]
TURNS = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in [*SKY, *NIGHT]]
LAST_ANSWER = "Black.<|im_end|>"
CONVERSATIONS = [
    {"messages": [*SKY, *NIGHT]},
    {"conversations": TURNS},
    {"prompt": [*SKY, NIGHT[0]], "completion": NIGHT[1:]},
    {"instruction": "At night?", "output": "Black.", "history": [["Sky?", "Blue."]]},
]


def kto(path, columns=None, cutoff_len=1024, positions=None, tokenizer=lambda: TOKENIZER):
    config = DatasetConfig(path=str(path), columns=columns or {})
    training = TrainingConfig(objective="kto", cutoff_len=cutoff_len)
    return load_dataset(config, training, tokenizer, VOCAB, positions)


@pytest.mark.parametrize("record", CONVERSATIONS, ids=lambda record: next(iter(record)))
def test_the_label_is_about_the_last_answer_of_a_conversation(tmp_path, record):
    loaded = kto(write(tmp_path, {**record, "label": True}, {**record, "label": False})).train
    assert isinstance(loaded, UnpairedSet)
    assert loaded.desirable.tolist() == [True, False]
    (ids, labels), _ = loaded[0]
    assert TOKENIZER.decode(labels[labels != -100]) == LAST_ANSWER
    assert "Blue." in TOKENIZER.decode(ids)


@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), ("true", "False"), ("1", "0")])
def test_labels_by_any_spelling(tmp_path, good, bad):
    path = write(tmp_path, *({"prompt": "a", "completion": " b", "label": value} for value in (good, bad, good)))
    assert kto(path).train.desirable.tolist() == [True, False, True]


def test_a_label_by_another_name(tmp_path):
    rows = [{"prompt": "a", "completion": " b", "kto_tag": True}, {"prompt": "a", "completion": " c", "kto_tag": False}]
    path = write(tmp_path, *rows)
    assert kto(path, {"label": "kto_tag"}).train.desirable.tolist() == [True, False]
    with pytest.raises(DataError, match=r"label: missing; .* kto .*: set dataset\.columns: \{label: kto_tag\}"):
        kto(path)


def test_a_table_and_the_split(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion,label,id\n" + "".join(f"a, b{i},{i % 2 == 0},{i}\n" for i in range(6)))
    config = DatasetConfig(path=str(path), val_size=2)
    loaded = load_dataset(config, TrainingConfig(objective="kto"), lambda: TOKENIZER, VOCAB)
    assert loaded.unread == "id"
    for part in (loaded.train, loaded.val):
        for (ids, _), desirable in (part[i] for i in range(len(part))):
            number = TOKENIZER.decode(ids).removeprefix("a b").removesuffix("</s>")
            assert desirable == (int(number) % 2 == 0)


def tokenised(ids, answer, label=True):
    return {"input_ids": ids, "labels": [-100] * (len(ids) - answer) + ids[-answer:], "label": label}


def test_a_prompt_is_put_together_with_the_answer_before_it_and_cut(tmp_path):
    path = write(
        tmp_path, tokenised([1, 2, 3, 4], 1), tokenised([5, 6, 7], 2), tokenised([8, 9, 10, 11], 3, label=False)
    )
    loaded = kto(path, cutoff_len=5, tokenizer=no_tokenizer)
    texts = mismatched([loaded.train[i][0] for i in range(3)], 5)
    assert [ids.tolist() for ids, _ in texts] == [[1, 2, 3, 9, 10], [5, 4], [8, 6, 7]]
    assert [labels.tolist() for _, labels in texts] == [[-100, -100, -100, 9, 10], [-100, 4], [-100, 6, 7]]
    assert loaded.longest == 5
    with pytest.raises(
        DataError, match=r"another sample's answer, has 5 tokens, but .* a table of 4 positions"
    ):  # the samples would fit: not so a prompt with another
        kto(path, cutoff_len=5, positions=4, tokenizer=no_tokenizer)


def test_other_labels_are_other_data(tmp_path):
    rows = [tokenised([1, 2, 3], 1), tokenised([4, 5, 6], 1)]
    one = kto(write(tmp_path, *rows), tokenizer=no_tokenizer).train
    other = UnpairedSet(one.answers, np.array([True, False]))
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "label: missing; .*: true for a good answer, false for a bad one"),
        ({"prompt": "a", "completion": "b", "label": None}, "label: missing"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label: 2 does not say .*; allowed: true, false, 1, 0"),
        ({"prompt": "a", "completion": "b", "label": [True]}, r"label: \[True\] does not say"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "kto, which learns from single answers; set the objective to dpo",
        ),
        (
            {"text": "a", "label": True},
            "format text, but training.objective is kto, which learns from answers to prompts",
        ),
        ({"input_ids": [1, 2], "label": True}, "labels: missing; .* which tokens are the answer"),
    ],
)
def test_what_is_no_labelled_answer(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        kto(write(tmp_path, record, record))


def test_the_other_objectives_name_the_way(tmp_path):
    path = write(tmp_path, {"prompt": "a", "completion": "b", "label": False})
    with pytest.raises(DataError, match="objective: kto, which learns from both kinds, or drop the records"):
        load(path)
    path = write(tmp_path, {"prompt": "a", "completion": "b", "kto_tag": False})
    with pytest.raises(DataError, match=r"set training\.objective: kto with dataset\.columns: \{label: kto_tag\}"):
        load(path)
    path = write(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c", "label": True})
    with pytest.raises(DataError, match="good one; drop the records with label false"):
        load(path, objective="dpo")
