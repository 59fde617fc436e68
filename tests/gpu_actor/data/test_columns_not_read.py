"""No column is dropped in silence: what changes a sample is refused by name, all else is named once."""

import pytest

from gpu_actor.contract.errors import DataError
from gpu_actor.data.formats import read_sample
from support.sample_files import VOCAB, load, write

MESSAGES = {"messages": [{"role": "user", "content": "Which city is it?"}, {"role": "assistant", "content": "Rome"}]}
ALPACA = {"instruction": "Name the city.", "output": "Rome"}
COMPLETION = {"prompt": "Q: Which city is it?\nA:", "completion": " Rome"}
TURNS = {"conversations": [{"from": "human", "value": "Which city is it?"}, {"from": "gpt", "value": "Rome"}]}
PAIR = {"prompt": "Which city is it?", "chosen": "Rome", "rejected": "Oslo"}
TEXT, TOKENS = {"text": "Rome"}, {"input_ids": [1, 2]}
FORMATS = {
    "messages": MESSAGES,
    "alpaca": ALPACA,
    "prompt_completion": COMPLETION,
    "sharegpt": TURNS,
    "preference": PAIR,
    "text": TEXT,
    "tokens": TOKENS,
}
CONVERSATIONS = ("messages", "alpaca", "prompt_completion", "sharegpt", "preference")


@pytest.mark.parametrize(
    ("formats", "column", "value", "remedy"),
    [
        (FORMATS, "label", False, "drop the records with label false"),
        (FORMATS, "kto_tag", True, "drop the records with kto_tag false"),
        (FORMATS, "Label", "False", "drop the records with Label false"),
        (
            ("alpaca", "prompt_completion", "messages"),
            "label",
            0,
            "objective: kto, .*the records with label 0 and take",
        ),
        (
            ("prompt_completion", "sharegpt"),
            "desirable",
            "1",
            r"kto with dataset\.columns: \{label: desirable\}, which",
        ),
        (FORMATS, "is_correct", False, "drop the records with is_correct false"),
        (FORMATS, "sample_weight", 0.5, "every record weighs the same"),
        (FORMATS, "weight", 0, "every record weighs the same"),
        (FORMATS, "loss_mask", [0, 1], "labels, -100 where no loss is taken"),
        (FORMATS, "assistant_masks", [0, 0], "labels, -100 where no loss is taken"),
        (FORMATS, "images", ["a.png"], "Loray trains on text alone"),
        (("tokens",), "position_ids", [0, 1], "one sequence in each record"),
        (("preference",), "ref_chosen_logps", -3.5, "the reference is computed"),
        (CONVERSATIONS, "chat_template_kwargs", {"x": 1}, "dataset.chat_template"),
        (CONVERSATIONS, "thinking", "It lies on the Tiber.", "reasoning_content of the answer"),
        (CONVERSATIONS, "documents", [{"title": "Tiber", "text": "A river."}], "write it into the question"),
        (CONVERSATIONS, "chat_history", [["a", "b"]], "without it another sample would be learned"),
        (CONVERSATIONS, "question", "Where is the Colosseum?", "without it another sample would be learned"),
        (("messages", "sharegpt"), "functions", [{"name": "f"}], r"set dataset.columns: \{tools: functions\}"),
        (("messages", "sharegpt"), "tool_defs", '[{"name": "f"}]', r"\{tools: tool_defs\}"),
        (("alpaca", "messages"), "System Prompt", "Be brief.", r"set dataset.columns: \{system: System Prompt\}"),
        (("messages", "sharegpt"), "prompt", "Where is the Colosseum?", "write it into the conversation"),
        (("alpaca",), "context", "It lies on the Tiber.", r"set dataset.columns: \{input: context\}"),
    ],
)
def test_what_changes_a_sample_is_refused_by_name(formats, column, value, remedy):
    for data_format in formats:
        with pytest.raises(DataError, match=f"^{column}: .*{remedy}"):
            read_sample({**FORMATS[data_format], column: value}, data_format, VOCAB)


@pytest.mark.parametrize(
    ("data_format", "column", "value"),
    [
        ("alpaca", "label", 3),  # the class of a classification
        ("text", "label", "positive"),
        ("text", "label", 1),
        ("preference", "label", 0),
        ("alpaca", "is_correct", True),
        ("messages", "weight", 1.0),
        ("alpaca", "images", []),
        ("prompt_completion", "question", "Which city is it?"),  # the prompt was made of it
        ("sharegpt", "problem", "Which city is it?"),
        ("messages", "prompt", " Which city is it?"),
        ("alpaca", "prompt", "Below is an instruction."),
        ("alpaca", "score", 0.0),
        ("tokens", "token_type_ids", [0, 0]),
        ("text", "reasoning", "a text is whole as it is"),
    ],
)
def test_what_changes_nothing_is_allowed(data_format, column, value):
    record = FORMATS[data_format]
    assert read_sample({**record, column: value}, data_format, VOCAB) == read_sample(record, data_format, VOCAB)


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "images", "loss_mask", "loss", "tool_calls"])
def test_a_turn_loses_nothing_either(field):
    human, gpt = TURNS["conversations"]
    with pytest.raises(DataError, match=rf"conversations\[1\]: the field '{field}' is not supported in a turn"):
        read_sample({"conversations": [human, {**gpt, field: ["x"]}]}, "sharegpt", VOCAB)


def test_all_other_columns_are_named_once(tmp_path):
    records = [
        {**ALPACA, "id": 1, "topic": None},
        {**ALPACA, "id": 2, "source": "x", "score": 0, "deleted": False, "input": ""},
    ]
    assert load(write(tmp_path, *records)).unread == "id, source, score, deleted"
    assert load(write(tmp_path, ALPACA)).unread == ""


def test_a_prompt_beside_two_conversations_is_their_beginning():
    user, answer = MESSAGES["messages"]
    sides = {"chosen": [user, answer], "rejected": [user, {**answer, "content": "Oslo"}]}
    read_sample({"prompt": user["content"], **sides}, "preference", VOCAB)
    with pytest.raises(DataError, match="prompt: the conversations chosen and rejected do not hold it"):
        read_sample({"prompt": "Where is the Colosseum?", **sides}, "preference", VOCAB)


def test_a_file_of_many_columns_makes_a_short_remark(tmp_path):
    columns = {f"{'long name ' * 50}{number}": 1 for number in range(500)}
    unread = load(write(tmp_path, {**ALPACA, "a\nb": 1, **columns})).unread
    assert unread.startswith(r"'a\nb', long name long name")
    assert unread.endswith("... and 493 more")
    assert len(unread) < 400
    many = [{**ALPACA, f"key{number}": 1} for number in range(1100)]
    assert load(write(tmp_path, *many)).unread.endswith(" and at least 992 more")
