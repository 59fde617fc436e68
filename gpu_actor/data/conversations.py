"""Conversations of a record: OpenAI's messages, ShareGPT's turns, tool calls and tool definitions."""

from __future__ import annotations

import json
from typing import Any

from gpu_actor.contract.errors import DataError, NoAnswerError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.meaning import Kind, kind_of
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Message, read_answer, read_any_text, read_optional_text, read_text

ROLES = ("system", "developer", "user", "assistant", "tool")
_EXTRAS = {"assistant": ("tool_calls", "name", "reasoning_content"), "tool": ("tool_call_id", "name")}
# The tags of LLaMA-Factory's ShareGPT files, and those of files that use the names of OpenAI's roles.
_TAGS = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "assistant",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

# What would change a sample, and has no place in a turn: fields by name, and kinds of fields.
_NOT_IN_TURNS = ("tool_calls", "tool_call_id", "function_call", "loss")
_KINDS_NOT_IN_TURNS: tuple[Kind, ...] = ("label", "loss mask", "media", "thought", "tools", "template arguments")

WEIGHTS = ("weight", "train")


def read_messages(value: Any, field: str) -> tuple[Message, ...]:
    """A list of messages with role and content, as OpenAI's API has them; a blank system message is left out."""
    _check_list(value, field, "message")
    return _without_blank_system([read_message(message, f"{field}[{index}]") for index, message in enumerate(value)])


def read_message(raw: Any, field: str) -> Message:
    """One message; an assistant that calls tools may leave its content empty."""
    if not isinstance(raw, dict):
        raise DataError(f"{field}: must be an object with role and content, not {shorten(raw)}")
    calls = raw.get("tool_calls")
    for name in ("role",) if calls else ("role", "content"):
        if name not in raw:
            raise DataError(f"{field}.{name}: missing; the message has {shorten(list(raw))}")
    role = raw["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{field}.role: {shorten(role)} is no role; use one of {', '.join(ROLES)}")
    allowed = ("role", "content", *_EXTRAS.get(role, ("name",)), *WEIGHTS)
    for name, given in raw.items():
        if name not in allowed and given not in (None, [], "", {}):
            raise DataError(
                f"{field}: the field {shorten(name)} is not supported; a message of the role {role} has "
                f"{', '.join(allowed)}"
            )
    content = raw.get("content")
    message: Message = {"role": role, "content": _read_content(content, f"{field}.content", role, bool(calls))}
    if calls:
        message["tool_calls"] = _read_calls(calls, f"{field}.tool_calls")
    reasoning = read_optional_text(raw.get("reasoning_content"), f"{field}.reasoning_content")
    if reasoning is not None and role == "assistant":
        message["reasoning_content"] = reasoning
    message |= read_weight(raw, role, field)
    for name in ("name", "tool_call_id"):
        if raw.get(name) not in (None, ""):
            message[name] = read_text(raw[name], f"{field}.{name}")
    return message


def _read_content(content: Any, field: str, role: str, calls: bool) -> str:
    """What a message says. A tool may return nothing, and a system message may be blank; an answer is learned."""
    content = _joined(content, field)
    if role == "assistant" and not calls:
        return read_answer(content, field)
    if calls or role in ("system", "developer"):
        return read_optional_text(content, field) or ""
    return read_any_text(content, field) if role == "tool" else read_text(content, field)


def _joined(content: Any, field: str) -> Any:
    """Text that is given in parts, as OpenAI's API and TRL write it, as one; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise DataError(f"{field}[{index}]: must be a part of the type text, not {shorten(kind or part)}")
        texts.append(read_any_text(part.get("text"), f"{field}[{index}].text"))
    return "".join(texts)


def _without_blank_system(messages: list[Message]) -> tuple[Message, ...]:
    return tuple(m for m in messages if m["content"] or m["role"] not in ("system", "developer"))


def read_sharegpt(value: Any, field: str, system: Any = None) -> tuple[Message, ...]:
    """A list of turns with from and value, and the record's `system` before them."""
    _check_list(value, field, "turn")
    turns = [read_turn(turn, f"{field}[{index}]") for index, turn in enumerate(value)]
    return with_system(_without_blank_system(turns), field, system)


def with_system(messages: tuple[Message, ...], field: str, system: Any) -> tuple[Message, ...]:
    """A conversation with the record's `system` before it; a null or blank one changes nothing."""
    text = read_optional_text(system, "system")
    if text is None:
        return messages
    if messages and messages[0]["role"] == "system":
        raise DataError(f"system: given twice, here and as {field}[0]; remove one")
    return ({"role": "system", "content": text}, *messages)


def read_turn(turn: Any, field: str) -> Message:
    """One turn of ShareGPT as a message; the value of a `function_call` becomes tool calls."""
    if not isinstance(turn, dict):
        raise DataError(f"{field}: must be an object with from and value, not {shorten(turn)}")
    for name in ("from", "value"):
        if name not in turn:
            hint = "; these are messages: set dataset.format: messages, dataset.columns: {messages: conversations}"
            hint = hint if "role" in turn else ""
            raise DataError(f"{field}.{name}: missing; the turn has {shorten(list(turn))}{hint}")
    for name, given in turn.items():
        misplaced = name in _NOT_IN_TURNS and given not in (None, [], "", {})
        if misplaced or kind_of(name, given) in _KINDS_NOT_IN_TURNS:
            raise DataError(
                f"{field}: the field {shorten(name)} is not supported in a turn; write messages, or remove it"
            )
    tag = turn["from"]
    if not isinstance(tag, str) or tag not in _TAGS:
        raise DataError(f"{field}.from: {shorten(tag)} is no tag; use one of {', '.join(_TAGS)}")
    role = _TAGS[tag]
    weight = read_weight(turn, role, field)
    if tag != "function_call":
        return {"role": role, "content": _read_content(turn["value"], f"{field}.value", role, calls=False), **weight}
    calls = _parse_json(read_answer(turn["value"], f"{field}.value"), f"{field}.value")
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "content": "", "tool_calls": _read_calls(calls, f"{field}.value"), **weight}


def assistant_turns(messages: tuple[Message, ...], field: str, start: int = 0) -> tuple[int, ...]:
    """The places of the assistant's messages that are learned, from `start` on.

    Raises:
        NoAnswerError: All of them have the weight 0.
    """
    turns = tuple(i for i in range(start, len(messages)) if messages[i]["role"] == "assistant")
    if not turns:
        raise DataError(f"{field}: holds no message of the role assistant, so there is nothing to learn")
    learned = tuple(i for i in turns if messages[i].get("weight") != 0)
    if not learned:
        raise NoAnswerError(f"{field}: every message of the role assistant has the weight 0")
    return learned


def read_tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    """Definitions of tools: a list of JSON schemas, or that list as text (ShareGPT's way).

    A bare function is wrapped as `{"type": "function", "function": ...}`, the form that chat templates expect.
    """
    if isinstance(value, str):
        value = _parse_json(value, "tools") if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"tools: must be a list of tool definitions, not {shorten(value)}")
    _check_writable(value, "tools")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)


def _read_calls(calls: Any, field: str) -> list[dict[str, Any]]:
    _check_list(calls, field, "tool call")
    return [_read_call(call, f"{field}[{index}]") for index, call in enumerate(calls)]


def _read_call(call: Any, field: str) -> dict[str, Any]:
    """A tool call in OpenAI's form, its arguments as an object: chat templates write them as JSON themselves."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
        raise DataError(f"{field}: must be an object with name and arguments, not {shorten(call)}")
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = _parse_json(arguments, f"{field}.arguments") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise DataError(f"{field}.arguments: must be a JSON object, not {shorten(arguments)}")
    _check_writable(arguments, f"{field}.arguments")
    tool_call: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        tool_call["id"] = read_text(call["id"], f"{field}.id")
    return {**tool_call, "function": {"name": read_text(function["name"], f"{field}.name"), "arguments": arguments}}


def _check_list(value: Any, field: str, item: str) -> None:
    if not isinstance(value, list) or not value:
        raise DataError(f"{field}: must be a list of at least one {item}, not {shorten(value)}")


def _parse_json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field}: is not valid JSON ({shorten(text)}): {str(error)[:80]}") from None


def _check_writable(value: Any, field: str) -> None:
    """Refuse what a chat template could not write as JSON text: NaN, infinities, broken Unicode."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{field}: cannot be written as JSON: {str(error)[:80]}") from None


def read_weight(message: Record, role: str, field: str) -> dict[str, Any]:
    """What a message or turn says of being learned, as part of a message: `weight` 0, or nothing.

    Args:
        message: The message or turn as it is in the file.
        role: Its role; only the assistant's messages are ever learned.
        field: Where it is.

    Raises:
        DataError: It asks for what is neither 0 nor 1, for both, or for a message of another role to be learned.
    """
    wanted: set[bool] = set()
    for name in WEIGHTS:
        value = message.get(name)
        if value is None or value == "":
            continue
        if value not in (0, 1) or isinstance(value, bool) != (name == "train"):
            allowed = "true and false" if name == "train" else "0 and 1"
            raise DataError(f"{field}.{name}: must be one of {allowed}, or null, not {shorten(value)}")
        if value and role != "assistant":
            raise DataError(
                f"{field}.{name}: {shorten(value)} wants a message of the role {role} to be learned; only the "
                "assistant's are: remove it"
            )
        wanted.add(bool(value))
    if len(wanted) == 2:
        raise DataError(f"{field}: weight and train contradict each other; remove one of them")
    return {"weight": 0} if role == "assistant" and wanted == {False} else {}
