"""An answer with the weight 0 is read, and not learned; what cannot be heeded is refused."""

import pytest

from gpu_actor.contract.errors import DataError
from gpu_actor.data.formats import read_sample
from support.sample_files import TOKENIZER, load, write

VOCAB = 100
OFF = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": False, "weight": 0}]
ON = [{}, {"weight": None}, {"weight": 1}, {"weight": 1.0}, {"train": True, "weight": None}]


def messages(*extras):
    """A conversation whose answers have these further fields."""
    found = []
    for number, extra in enumerate(extras):
        found += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}", **extra}]
    return {"messages": found}


def turns(*extras):
    tags = {"user": "human", "assistant": "gpt"}
    return {
        "conversations": [
            {"from": tags[m["role"]], "value": m["content"], **{k: m[k] for k in m if k not in ("role", "content")}}
            for m in messages(*extras)["messages"]
        ]
    }


def learned(path, **training):
    labels = load(path, **training).train[0][1]
    return TOKENIZER.decode([label for label in labels if label != -100])


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("make", [messages, turns])
def test_an_answer_with_the_weight_0_is_not_learned(tmp_path, make, off):
    path = write(tmp_path, make({}, off, {}))
    assert learned(path) == "a0<|im_end|>a2<|im_end|>"
    whole = write(tmp_path, messages({}, {}, {}), name="whole.jsonl")
    assert load(path).train[0][0].tolist() == load(whole).train[0][0].tolist()


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("make", [messages, turns])
def test_other_answers_are_learned(tmp_path, make, on):
    assert learned(write(tmp_path, make(on))) == "a0<|im_end|>"


def test_a_conversation_without_a_weight_is_counted(tmp_path):
    loaded = load(write(tmp_path, turns({"weight": 0}), turns({})))
    assert (len(loaded.train), loaded.dropped) == (1, 1)


def test_the_weights_of_slim_orca():
    record = {
        "conversations": [
            {"from": "system", "value": "s", "weight": None},
            {"from": "human", "value": "q", "weight": 0.0},
            {"from": "gpt", "value": "a", "weight": 1.0},
        ]
    }
    sample = read_sample(record, "sharegpt", VOCAB)
    assert sample.learned == (2,)
    assert all("weight" not in message for message in sample.messages)


@pytest.mark.parametrize("make", [messages, turns])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"weight": 0.5}, r"\[1\]\.weight: must be one of 0 and 1, or null, not 0\.5"),
        ({"weight": True}, r"\[1\]\.weight: must be one of 0 and 1"),
        ({"weight": [0]}, r"\[1\]\.weight: must be one of 0 and 1"),
        ({"train": 0}, r"\[1\]\.train: must be one of true and false"),
        ({"train": True, "weight": 0}, r"\[1\]: weight and train contradict"),
    ],
)
def test_weights_that_cannot_be_heeded(make, extra, message):
    data_format = "messages" if make is messages else "sharegpt"
    with pytest.raises(DataError, match=message):
        read_sample(make(extra), data_format, VOCAB)


def test_a_question_is_not_learned():
    record = messages({})
    record["messages"][0]["weight"] = 1
    with pytest.raises(DataError, match=r"messages\[0\]\.weight: 1 wants a message of the role user to be learned"):
        read_sample(record, "messages", VOCAB)


def test_train_on_inputs_contradicts_a_weight(tmp_path):
    with pytest.raises(DataError, match=r"weight: training\.train_on_inputs is true, but a message has the weight 0"):
        load(write(tmp_path, messages({"weight": 0}, {})), train_on_inputs=True)


@pytest.mark.parametrize("field", ["tool_calls", "loss", "images"])
def test_other_fields_of_a_turn_that_change_a_sample(field):
    with pytest.raises(DataError, match=rf"conversations\[1\]: the field '{field}' is not supported in a turn"):
        read_sample(turns({field: [1]}), "sharegpt", VOCAB)
    read_sample(turns({field: None, "markdown": "x"}), "sharegpt", VOCAB)
