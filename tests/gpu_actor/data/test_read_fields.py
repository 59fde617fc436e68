"""No field that changes a sample is dropped in silence: it is read, or it is refused by name."""

import pytest

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import DataError
from gpu_actor.data.dataset import load_dataset
from gpu_actor.data.formats import read_sample
from support.sample_files import TOKENIZER, load, write

VOCAB = 100
PIRATE = {"role": "system", "content": "BE A PIRATE"}
Q, A, B = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
TURNS = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("data_format", "record"),
    [
        ("messages", {"messages": [Q, A]}),
        ("prompt_completion", {"prompt": [Q], "completion": [A]}),
        ("preference", {"prompt": [Q], "chosen": [A], "rejected": [B]}),
        ("preference", {"chosen": [Q, A], "rejected": [Q, B]}),
        ("preference", {"messages": [Q], "chosen": A, "rejected": B}),
        ("preference", {"instruction": "q", "chosen": "a", "rejected": "b"}),
    ],
)
def test_a_column_called_system_comes_before_the_messages(data_format, record):
    sample = read_sample({**record, "system": "BE A PIRATE"}, data_format, VOCAB)
    for side in [sample] if data_format != "preference" else [sample.chosen, sample.rejected]:
        assert side.messages[:2] == (PIRATE, Q)
        assert [side.messages[i]["role"] for i in side.learned] == ["assistant"]
    assert read_sample({**record, "system": " "}, data_format, VOCAB) == read_sample(record, data_format, VOCAB)


def test_a_system_message_is_given_once():
    with pytest.raises(DataError, match=r"system: given twice, here and as messages\[0\]"):
        read_sample({"system": "s", "messages": [PIRATE, Q, A]}, "messages", VOCAB)


@pytest.mark.parametrize(
    ("data_format", "record", "field"),
    [
        ("preference", {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}, "system"),
        ("preference", {"tools": TOOLS, "prompt": "q", "chosen": "a", "rejected": "b"}, "tools"),
        ("preference", {"tools": TOOLS, "instruction": "q", "chosen": "a", "rejected": "b"}, "tools"),
        ("preference", {"history": [["x", "y"]], "prompt": "q", "chosen": "a", "rejected": "b"}, "history"),
        ("preference", {"images": ["a.png"], "prompt": [Q], "chosen": [A], "rejected": [B]}, "images"),
        ("sharegpt", {"images": ["a.png"], "conversations": TURNS}, "images"),
        ("sharegpt", {"image": "a.png", "conversations": TURNS}, "image"),
        ("messages", {"history": [["x", "y"]], "messages": [Q, A]}, "history"),
        ("alpaca", {"tools": TOOLS, "instruction": "q", "output": "a"}, "tools"),
        ("prompt_completion", {"system": "s", "prompt": "q", "completion": "a"}, "system"),
        ("prompt_completion", {"history": [["x", "y"]], "prompt": "q", "completion": "a"}, "history"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused(data_format, record, field):
    with pytest.raises(DataError, match=rf"^{field}: "):
        read_sample(record, data_format, VOCAB)
    for empty in (None, [], "", " ", "[]"):  # as exports and CSV files fill them in
        read_sample({**record, field: empty}, data_format, VOCAB)


def test_a_text_is_whole_as_it_is():
    """A column of the rendered text stands beside those it was made of."""
    record = {"text": "t", "system": "s", "tools": TOOLS, "history": [["x", "y"]], "reasoning": "r", "question": "q"}
    assert read_sample(record, "text", VOCAB).answer == "t"
    assert read_sample({"input_ids": [1], "system": "s"}, "tokens", VOCAB).input_ids == [1]


@pytest.mark.parametrize("field", ["question", "query", "problem", "input", "context"])
def test_a_question_beside_two_answers_is_not_lost(field):
    """Without it the answers' common beginning, here "The answer is", would be the prompt."""
    record = {field: "What is 2 + 2?", "chosen": "The answer is 4", "rejected": "The answer is 5"}
    with pytest.raises(DataError, match=rf"prompt: missing, and {field} may be it; .*\{{prompt: {field}\}}"):
        read_sample(record, "preference", VOCAB)
    pair = read_sample({**record, "prompt": "What is 2 + 2?"}, "preference", VOCAB)
    assert (pair.chosen.prompt, pair.chosen.answer) == ("What is 2 + 2?", "The answer is 4")


def test_messages_beside_two_texts_are_not_lost():
    with pytest.raises(DataError, match=r"chosen: must be a message, as the prompt is given as messages"):
        read_sample({"messages": [Q], "chosen": "It is 4", "rejected": "It is 5"}, "preference", VOCAB)


@pytest.mark.parametrize(
    ("record", "columns", "objective", "message"),
    [
        ({"text": "t", "sys": "s"}, {"system": "sys"}, "sft", r"dataset\.columns\.system: 'sys' would not be read"),
        ({"messages": [Q, A], "p": "s"}, {"prompt": "p"}, "sft", r"columns\.prompt: 'p' .* format messages"),
        (
            {"instruction": "q", "output": "a", "t": TOOLS},
            {"tools": "t"},
            "sft",
            r"columns\.tools: 't' .* format alpaca, which has history, input, instruction, output, system",
        ),
        ({"instruction": "q", "chosen": "a", "rejected": "b", "p": "q"}, {"prompt": "p"}, "dpo", r"columns\.prompt"),
        (
            {"chosen_input_ids": [1], "rejected_input_ids": [1], "p": "q"},
            {"prompt": "p"},
            "dpo",
            r"columns\.prompt",
        ),
    ],
)
def test_a_renamed_column_that_the_format_does_not_read(tmp_path, record, columns, objective, message):
    path = write(tmp_path, record)
    config = DatasetConfig(path=str(path), columns=columns)
    with pytest.raises(DataError, match=message):
        load_dataset(config, TrainingConfig(objective=objective), lambda: TOKENIZER, len(TOKENIZER))


def test_a_renamed_system_column_is_learned_from(tmp_path):
    path = write(tmp_path, {"messages": [Q, A], "sys": "BE A PIRATE"})
    config = DatasetConfig(path=str(path), columns={"system": "sys"})
    found = load_dataset(config, TrainingConfig(), lambda: TOKENIZER, len(TOKENIZER)).train[0][0].tolist()
    assert found == load(write(tmp_path, {"messages": [PIRATE, Q, A]})).train[0][0].tolist()
