"""A blank value in one record does not cost a whole data set: it is left out, counted, or kept, by what it is."""

import pytest

from gpu_actor.contract.errors import DataError
from gpu_actor.data.formats import read_sample
from support.sample_files import load, write

VOCAB = 100
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
B = {"role": "assistant", "content": "b"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
CALL = {"name": "f", "arguments": {}}


@pytest.mark.parametrize("blank", ["", " \n", None])
@pytest.mark.parametrize(
    ("make", "objective"),
    [
        (lambda text: {"instruction": "q", "output": text}, "sft"),
        (lambda text: {"instruction": "q", "output": "a", "history": [["q", text]]}, "sft"),
        (lambda text: {"prompt": "q", "completion": text}, "sft"),
        (lambda text: {"text": text}, "sft"),
        (lambda text: {"messages": [Q, {"role": "assistant", "content": text}]}, "sft"),
        (lambda text: {"conversations": [HUMAN, {"from": "gpt", "value": text}]}, "sft"),
        (lambda text: {"prompt": "q", "chosen": "b", "rejected": text}, "dpo"),
        (lambda text: {"prompt": [Q], "chosen": [{"role": "assistant", "content": text}], "rejected": [B]}, "dpo"),
        (lambda text: {"instruction": "q", "chosen": text, "rejected": "b"}, "dpo"),
    ],
)
def test_a_blank_answer_is_counted(tmp_path, make, objective, blank):
    loaded = load(write(tmp_path, make("a"), make(blank), make("c")), objective=objective)
    assert (len(loaded.train), loaded.dropped) == (2, 1)


def test_nothing_but_blank_answers(tmp_path):
    path = write(tmp_path, *[{"instruction": "q", "output": ""}] * 3)
    with pytest.raises(DataError, match=r"nothing to train on: all 3 records were dropped \(3: the answer is empty\)"):
        load(path)


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_blank_system_message_is_left_out(blank):
    messages = read_sample({"messages": [{"role": "system", "content": blank}, Q, A]}, "messages", VOCAB).messages
    assert messages == (Q, A)
    turns = [{"from": "system", "value": blank}, HUMAN, GPT]
    assert read_sample({"conversations": turns, "system": "s"}, "sharegpt", VOCAB).messages[0]["content"] == "s"


def test_a_tool_may_return_nothing():
    tool = {"role": "tool", "content": ""}
    messages = [Q, {"role": "assistant", "content": "", "tool_calls": [CALL]}, tool, A]
    assert read_sample({"messages": messages}, "messages", VOCAB).messages[2] == tool
    turns = [
        HUMAN,
        {"from": "function_call", "value": '{"name": "f", "arguments": null}'},
        {"from": "observation", "value": ""},
        GPT,
    ]
    found = read_sample({"conversations": turns}, "sharegpt", VOCAB).messages
    assert found[2] == tool
    assert found[1]["tool_calls"][0]["function"]["arguments"] == {}


def test_names_that_exports_fill_with_nothing():
    given = {**Q, "name": "", "tool_call_id": "", "function_call": {}}
    assert read_sample({"messages": [given, {**A, "name": ""}]}, "messages", VOCAB).messages == (Q, A)


def test_an_alpaca_question_is_what_is_there_of_instruction_and_input():
    swapped = read_sample({"instruction": "", "input": "q", "output": "a"}, "alpaca", VOCAB)
    assert swapped == read_sample({"instruction": "q", "output": "a"}, "alpaca", VOCAB)
    with pytest.raises(DataError, match=r"instruction: is empty"):
        read_sample({"instruction": "", "input": " ", "output": "a"}, "alpaca", VOCAB)


def test_a_completion_may_stand_without_a_prompt(tmp_path):
    whole = load(write(tmp_path, {"prompt": "", "completion": "ab"})).train[0]
    text = load(write(tmp_path, {"text": "ab"}, name="text.jsonl")).train[0]
    assert [part.tolist() for part in whole] == [part.tolist() for part in text]


def test_rows_of_commas_are_none(tmp_path):
    path = write(tmp_path, b"instruction,output", b"q,a", b",", b' ,""', name="data.csv")
    assert len(load(path).train) == 1
