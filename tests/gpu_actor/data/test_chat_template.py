"""The chat template of a job: a program of strangers, which is stopped, counted and explained."""

from pathlib import Path

import pytest
import trl
from pydantic import ValidationError

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import DataError
from gpu_actor.data.dataset import load_dataset
from support.sample_files import GOOD, TOKENIZER, VOCAB, load, write
from support.sample_tokenizers import CHATML


def load_with_template(path, template):
    config = DatasetConfig(path=str(path), chat_template=template)
    return load_dataset(config, TrainingConfig(), lambda: TOKENIZER, VOCAB)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for a in range(99999) %}x{% endfor %}{% endmacro %}"
        "{% for a in range(99999) %}{{ f() }}{% endfor %}",
    ],
)
def test_a_template_that_loops_is_stopped(tmp_path, template):
    path = write(tmp_path, *[GOOD] * 3)
    with pytest.raises(DataError, match=r"data\.jsonl:1: the chat template made more than 1,000,000 steps"):
        load_with_template(path, template)


def test_a_template_with_macros_may_not_recurse_for_ever(tmp_path):
    template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(DataError, match="the chat template refuses the conversation: maximum recursion depth"):
        load_with_template(write(tmp_path, GOOD), template)


def test_a_template_that_raises_for_some_samples_is_counted(tmp_path):
    template = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    template += "{{ m.role + m.content }}{% endfor %}"
    path = write(tmp_path, GOOD, {**GOOD, "instruction": "bad"}, GOOD, {**GOOD, "output": "bad"})
    with pytest.raises(DataError) as caught:
        load_with_template(path, template)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 of 4 records cannot be used:",
        f"{path}:2: the chat template refuses the conversation: no",
        f"{path}:4: the chat template refuses the conversation: no",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"x" * (2**20 + 1), "is larger than 1 MiB"),
    ],
)
def test_template_files_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.jsonl:1: dataset\.chat_template: .*chat\.jinja {message}"):
        load_with_template(write(tmp_path, GOOD), str(file))


def test_a_template_for_samples_that_need_none(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.chat_template is given, but these samples are no conversations"):
        load_with_template(write(tmp_path, {"text": "a"}), CHATML)


def test_tools_that_the_template_does_not_write(tmp_path):
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{}]}
    with pytest.raises(DataError, match="tools: the chat template writes no tools"):
        load(write(tmp_path, record))
    calls = [{"name": "f", "arguments": {}}]
    with pytest.raises(DataError, match=r"writes the tool calls of message 0 \(role assistant\) 0 times"):
        load(write(tmp_path, {"messages": [{"role": "assistant", "content": "", "tool_calls": calls}]}))


@pytest.mark.parametrize("value", ["chatml", "tokenizer_default", "chat.j2", "chat.jinja2", "templates/chat", " "])
def test_what_is_neither_a_template_nor_a_file_is_refused_at_submission(value):
    with pytest.raises(ValidationError, match=r"is neither a template, which has Jinja's braces, nor the path of a"):
        DatasetConfig(path="d.jsonl", chat_template=value)


# --- the clock ---


@pytest.mark.parametrize(
    ("template", "date"),
    [
        ("llama3_2", "Today Date: 26 Jul 2024"),
        ("gptoss", "Current date: 2024-07-26"),
        ("{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.role + m.content }}{% endfor %}", "2024-07-26"),
    ],
)
def test_a_template_sees_one_day_whenever_it_runs(tmp_path, template, date):
    """Today's date in a sample would make a job that goes on after midnight another one."""
    file = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
    text = file.read_text() if "{" not in template else template
    ids, _ = load_with_template(write(tmp_path, GOOD), text).train[0]
    assert date in TOKENIZER.decode(ids)
