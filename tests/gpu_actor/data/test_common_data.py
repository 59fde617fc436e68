"""Data as common tools write them: parts of text, reasoning, masks of ones, lists in CSV."""

import csv
import json
from pathlib import Path

import pytest
import trl

from gpu_actor.contract.errors import DataError
from gpu_actor.data.formats import read_sample
from support.sample_files import VOCAB, as_lists, load, write
from support.sample_tokenizers import byte_level_tokenizer

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
QWEN3 = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


def test_a_mask_of_ones_says_nothing():
    plain = read_sample({"input_ids": [1, 2]}, "tokens", VOCAB)
    assert read_sample({"input_ids": [1, 2], "attention_mask": [1, 1]}, "tokens", VOCAB) == plain
    for mask in ([0, 1], [1, None], "11", 1):
        with pytest.raises(DataError, match="attention_mask: not supported"):
            read_sample({"input_ids": [1, 2], "attention_mask": mask}, "tokens", VOCAB)


def test_text_in_parts_is_one_text():
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[1:]}]
    expected = ({"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "is it?"})
    assert read_sample({"messages": messages}, "messages", VOCAB).messages == expected
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(DataError, match=r"content\[0\]: must be a part of the type text, not 'image_url'"):
        read_sample({"messages": [{"role": "user", "content": image}, A]}, "messages", VOCAB)


def test_reasoning_is_learned_where_the_template_writes_it(tmp_path):
    path = write(tmp_path, {"messages": [Q, {**A, "reasoning_content": "I think."}]})
    tokenizer = byte_level_tokenizer(QWEN3)
    _, labels = load(path, lambda: tokenizer).train[0]
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned == "<think>\nI think.\n</think>\n\na<|im_end|>"
    with pytest.raises(DataError, match="reasoning_content: the chat template writes none"):
        load(path)


def test_reasoning_belongs_to_the_assistant():
    with pytest.raises(DataError, match="the field 'reasoning_content' is not supported; a message of the role user"):
        read_sample({"messages": [{**Q, "reasoning_content": "x"}, A]}, "messages", VOCAB)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [Q, A]},
        {"conversations": [{"from": "human", "value": 'q, "r"'}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a", "history": [["x", "y"]]},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
    ],
)
def test_lists_stand_in_csv_as_json_text(tmp_path, record):
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        writer.writeheader()
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()})
    assert as_lists(load(path).train) == as_lists(load(write(tmp_path, record)).train)


def test_text_that_is_no_json_is_no_list():
    with pytest.raises(DataError, match=r"messages: must be a list of at least one message, not \"\[\{'role'"):
        read_sample({"messages": "[{'role': 'user'}]"}, "messages", VOCAB)
