"""Records of the format preference: a prompt, a chosen answer, and a rejected one.

The layouts are those of TRL (prompt and answers as text or messages, or whole conversations that share their
beginning), of LLaMA-Factory (ShareGPT turns or an alpaca instruction, and two answers), and token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu_actor.contract.errors import DataError, NoAnswerError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.alpaca import alpaca_fallback, alpaca_prompt
from gpu_actor.data.conversations import (
    assistant_turns,
    read_message,
    read_messages,
    read_sharegpt,
    read_tools,
    read_turn,
    with_system,
)
from gpu_actor.data.meaning import is_said, texts
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Chat, Message, Pair, Plain, read_answer, read_optional_text, read_text, read_tokens
from gpu_actor.data.turns import common_length

SIDES = ("chosen", "rejected")
# Columns that hold a prompt in other people's files: beside them, what both answers begin with is not the prompt.
_QUESTIONS = ("question", "query", "problem", "input", "context")
PAIR_COLUMNS = (SIDES, ("chosen_input_ids", "rejected_input_ids"))


def read_pair(record: Record, vocab_size: int) -> Pair:
    """Read one preference pair, whatever its layout.

    Raises:
        DataError: It has no layout that is known, or a field cannot be used; its name comes first.
    """
    if _layout(record) == "tokens":
        return _read_token_pair(record, vocab_size)
    for field in SIDES:
        if field not in record:
            raise DataError(
                f"{field}: missing; a preference pair has chosen and rejected, this one has {shorten(list(record))}"
            )
    chosen, rejected = record["chosen"], record["rejected"]
    for side in SIDES:
        if record[side] is None:
            raise NoAnswerError(f"{side}: is empty (None)")
    if type(chosen) is not type(rejected):
        raise DataError(
            f"rejected: chosen and rejected must be of one kind, not {shorten(chosen)} and {shorten(rejected)}"
        )
    return _LAYOUTS[_layout(record)][1](record)


def pair_fields(record: Record) -> frozenset[str]:
    """The fields that a pair's layout reads."""
    layout = _layout(record)
    if layout == "tokens":
        return frozenset(f"{side}_{field}" for side in SIDES for field in ("input_ids", "labels"))
    return frozenset((*SIDES, *_LAYOUTS[layout][0]))


def _layout(record: Record) -> str:
    """The name of a pair's layout, by its columns."""
    if "chosen_input_ids" in record or "rejected_input_ids" in record:
        return "tokens"
    if "conversations" in record:
        return "turns"
    if "messages" in record and isinstance(record.get("chosen"), dict):
        return "messages"
    if "instruction" in record:
        return "alpaca"
    if isinstance(record.get("prompt"), list):
        return "prompt of messages"
    if isinstance(record.get("chosen"), list):
        return "conversations"
    return "text"


def _read_turns(record: Record) -> Pair:
    before = read_sharegpt(record["conversations"], "conversations", record.get("system"))
    return _answers(record, before, _single(read_turn))


def _read_messages(record: Record) -> Pair:
    before = with_system(read_messages(record["messages"], "messages"), "messages", record.get("system"))
    return _answers(record, before, _single(read_message))


def _read_prompt_of_messages(record: Record) -> Pair:
    before = with_system(read_messages(record["prompt"], "prompt"), "prompt", record.get("system"))
    return _answers(record, before, _one_or_many)


def _read_token_pair(record: Record, vocab_size: int) -> Pair:
    for side in SIDES:
        for field in (f"{side}_input_ids", f"{side}_labels"):
            if field not in record:
                raise DataError(
                    f"{field}: missing; a tokenised pair has input_ids and labels for both sides "
                    "(labels unshifted, -100 on the prompt)"
                )
    return Pair(*(read_tokens(record, vocab_size, f"{side}_") for side in SIDES))


Reader = Callable[[Any, str], Sequence[Message]]


def _single(read: Callable[[Any, str], Message]) -> Reader:
    return lambda value, field: (read(value, field),)


def _one_or_many(value: Any, field: str) -> Sequence[Message]:
    return (read_message(value, field),) if isinstance(value, dict) else read_messages(value, field)


def _answers(record: Record, before: Sequence[Message], read: Reader) -> Pair:
    """A prompt of messages, and both answers as messages."""
    return _pair_of_chats(record, before, *(read(record[side], side) for side in SIDES))


def _pair_of_chats(record: Record, before: Sequence[Message], *answers: Sequence[Message]) -> Pair:
    tools = read_tools(record.get("tools"))
    chats = []
    for side, answer in zip(SIDES, answers, strict=True):
        messages = (*before, *answer)
        chats.append(Chat(messages, assistant_turns(messages, side, len(before)), tools=tools))
    return Pair(*chats)


def _read_conversations(record: Record) -> Pair:
    """Two whole conversations: the prompt is what they have in common at the beginning.

    Where both sides are answers alone, a prompt beside them that is text is the question.
    """
    sides = [read_messages(record[side], side) for side in SIDES]
    prompt = read_optional_text(record.get("prompt"), "prompt")
    if prompt is not None and all(message["role"] == "assistant" for side in sides for message in side):
        question: Message = {"role": "user", "content": prompt}
        return _pair_of_chats(record, with_system((question,), "prompt", record.get("system")), *sides)
    if prompt is not None and not is_said(prompt, "\n".join(texts([record[side] for side in SIDES]))):
        raise DataError(
            f"prompt: the conversations chosen and rejected do not hold it ({shorten(prompt)}), and it would be lost; "
            "write it into both, give it as a list of messages before answers alone, or remove it"
        )
    sides = [with_system(side, name, record.get("system")) for side, name in zip(sides, SIDES, strict=True)]
    shared = common_length(*sides)
    if not shared:
        raise DataError(
            "rejected: does not begin with the messages that chosen begins with; give the prompt as a field of its own"
        )
    if shared == max(map(len, sides)):  # the same conversation twice: it is counted and left out later
        shared = max(i for i in range(shared) if i == 0 or sides[0][i]["role"] == "assistant")
    return _pair_of_chats(record, sides[0][:shared], *(side[shared:] for side in sides))


def _read_alpaca_pair(record: Record) -> Pair:
    before = alpaca_prompt(record)
    chats = []
    for side in SIDES:
        answer = read_answer(record[side], side)
        messages = (*before, {"role": "assistant", "content": answer})
        chats.append(Chat(messages, (len(before),), alpaca_fallback(record, before, answer)))
    return Pair(*chats)


def _read_texts(record: Record) -> Pair:
    chosen, rejected = (read_answer(record[side], side) for side in SIDES)
    if record.get("prompt") is not None:
        prompt = read_text(record["prompt"], "prompt")
        return Pair(Plain(prompt, chosen), Plain(prompt, rejected))
    if record.get("messages"):
        raise DataError("chosen: must be a message, as the prompt is given as messages; write both answers so")
    for field in _QUESTIONS:
        if record.get(field):
            raise DataError(f"prompt: missing, and {field} may be it; set dataset.columns: {{prompt: {field}}}")
    shared = common_length(chosen, rejected)
    if shared and chosen[shared - 1] == " ":  # as in TRL: the blank belongs to the answers
        shared -= 1
    if not chosen[:shared].strip():
        raise DataError("prompt: missing, and chosen and rejected do not begin alike; give the prompt as a field")
    return Pair(*(Plain(side[:shared], side[shared:]) for side in (chosen, rejected)))


# Which fields a layout has a place for, beside the two answers, and its reader.
_LAYOUTS: Mapping[str, tuple[Sequence[str], Callable[[Record], Pair]]] = {
    "turns": (("conversations", "system", "tools"), _read_turns),
    "messages": (("messages", "system", "tools"), _read_messages),
    "alpaca": (("instruction", "input", "system", "history"), _read_alpaca_pair),
    "prompt of messages": (("prompt", "system", "tools"), _read_prompt_of_messages),
    "conversations": (("prompt", "system", "tools"), _read_conversations),  # a prompt that repeats their beginning
    "text": (("prompt",), _read_texts),
}
