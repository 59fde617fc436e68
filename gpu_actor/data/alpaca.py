"""Records of the format alpaca: an instruction, an input, and what was said before."""

from __future__ import annotations

from typing import Any

from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Chat, Message, Plain, read_answer, read_optional_text, read_text

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def read_alpaca(record: Record) -> Chat:
    """The conversation of a record; the answers of its history are learned too, as in LLaMA-Factory."""
    before = alpaca_prompt(record)
    messages = (*before, {"role": "assistant", "content": read_answer(record["output"], "output")})
    learned = tuple(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return Chat(messages, learned, alpaca_fallback(record, before, messages[-1]["content"]))


def alpaca_prompt(record: Record) -> tuple[Message, ...]:
    """What comes before the answer: system, history and the question, which is instruction and input."""
    system = read_optional_text(record.get("system"), "system")
    question, context = _question(record)
    return (
        *([{"role": "system", "content": system}] if system else []),
        *_read_history(record.get("history")),
        {"role": "user", "content": f"{question}\n{context}" if context else question},
    )


def alpaca_fallback(record: Record, before: tuple[Message, ...], answer: str) -> Plain | None:
    """Alpaca's own prompt, for a tokenizer without a chat template; it has no place for system and history."""
    if len(before) > 1:
        return None
    question, context = _question(record)
    form = _WITH_INPUT if context else _WITHOUT_INPUT
    return Plain(form.format(instruction=question, input=context), answer)


def _question(record: Record) -> tuple[str, str | None]:
    """The instruction and its input. One of them may be blank: the original data has an empty input for most."""
    context = read_optional_text(record.get("input"), "input")
    instruction = read_optional_text(record["instruction"], "instruction")
    if instruction is not None:
        return instruction, context
    return context or read_text(record["instruction"], "instruction"), None


def _read_history(value: Any) -> list[Message]:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise DataError(f"history: must be a list of [question, answer], not {shorten(value)}")
    messages: list[Message] = []
    for index, turn in enumerate(value):
        field = f"history[{index}]"
        if not isinstance(turn, list) or len(turn) != 2:
            raise DataError(f"{field}: must be [question, answer], not {shorten(turn)}")
        messages.append({"role": "user", "content": read_text(turn[0], f"{field}[0]")})
        messages.append({"role": "assistant", "content": read_answer(turn[1], f"{field}[1]")})
    return messages
