"""From pydantic's errors to words: what was wrong, the value, what is allowed, what to do."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.peft_fields import unsupported_message
from orchestrator.validation.field_index import FieldIndex, FieldPath, dotted, field_index
from orchestrator.validation.foreign_fields import Document, foreign_field

_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping of fields",
    "null": "null",
}
_PLURALS = {"string": "text", "integer": "whole numbers", "number": "numbers", "object": "mappings"}
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "up to", "exclusiveMaximum": "below"}


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a job or a file from being used.

    Attributes:
        source: The file, or the job in words.
        field: Dotted name of the field, or empty.
        message: What is wrong, the value, what is allowed, what to do.
    """

    source: str
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.field, self.message) if part)


class ProblemsError(LorayError, ValueError):
    """Several problems at once; its text has one line for each.

    Attributes:
        problems: The problems, in the order in which they were found.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)  # as the only argument, so that the error survives pickling
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def show(value: Any) -> str:
    """A value for a message: short, on one line, without credentials."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxstring = short.maxother = 240  # paths are shown whole
    if isinstance(value, str):
        value = re.sub(r"://[^@/]*@", "://***@", value)
    try:
        text = short.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "a number of more than 4300 digits"
    return " ".join(text.split())


def explain(
    error: ValidationError, data: Mapping[str, Any], model: type[BaseModel], document: Document | None = None
) -> list[tuple[FieldPath, str]]:
    """Every problem of a refused document as its path and its words, one for each field.

    Args:
        error: What pydantic raised.
        data: The document that it refused.
        model: The model that the document should fit.
        document: Whether it is a job file or a cluster file; other documents know nothing of other trainers.
    """
    groups: dict[FieldPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        groups.setdefault(_field_path(item["loc"], data, item["type"]), []).append(item)
    # Where one branch of a union got as far as an item, the complaints of the other branches are noise.
    inner = {path[:length] for path in groups for length in range(len(path))}
    index = field_index(model)
    return [
        problem
        for path, items in groups.items()
        if path not in inner
        for problem in _explain_field(path, items, index, document)
    ]


def _field_path(location: tuple[int | str, ...], data: Any, kind: str) -> FieldPath:
    """Where an error is in the document: its location without pydantic's names of union branches."""
    path: list[str | int] = []
    for part in location:
        if isinstance(data, Mapping) and part in data:
            path.append(str(part))
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int):
            path.append(part)
            data = data[part]
    return (*path, location[-1]) if kind == "missing" else tuple(path)


def _explain_field(
    path: FieldPath, items: Sequence[Any], index: FieldIndex, document: Document | None
) -> list[tuple[FieldPath, str]]:
    item = next((item for item in items if item["type"] == "value_error"), items[0])
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return [(field, _missing_message(index.node(field))) for field in index.required(path)]
    if kind in ("extra_forbidden", "invalid_key"):
        if path[:-1] == ("lora",) and (reason := unsupported_message(str(path[-1]))):
            return [(path, reason)]
        names = ", ".join(index.names(path[:-1]))
        hint = unknown_field_hint(path, index, document) or (
            f"the fields here are {names}" if names else "leave it out"
        )
        return [(path, f"is not a field here; {hint}")]
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        return [(path, message if isinstance(value, Mapping) else f"{show(value)} {message}")]
    if kind == "string_unicode":
        return [(path, f"{show(value)} is not valid Unicode text; write it anew")]
    return [(path, _misfit_message(value, index.node(path)))]


def unknown_field_hint(path: FieldPath, index: FieldIndex, document: Document | None) -> str | None:
    """What to write instead of an unknown field, or None where nothing comes near it.

    A name that is right in another section goes first, then what other trainers call so, then a slip of the pen.

    Args:
        path: The unknown field; its section is known.
        index: The fields of the document.
        document: Whether it is a job file or a cluster file; other documents know nothing of other trainers.
    """
    elsewhere = index.in_another_section(path)
    if elsewhere is not None and elsewhere == dotted(path):
        section, _, name = elsewhere.rpartition(".")
        return f"write `{name}` inside the mapping `{section}`"
    if document and elsewhere is None and (foreign := foreign_field(str(path[-1]))):
        return foreign.advice(document)
    near = elsewhere or index.similar(path)
    return f"did you mean {near}?" if near else None


def _missing_message(node: Mapping[str, Any]) -> str:
    return f"is missing; give {_inside_a_sentence(node.get('description', 'It.'))}"


def _misfit_message(value: Any, node: dict[str, Any]) -> str:
    """What to say of a value that is of the wrong kind or out of range."""
    kinds = [branch["type"] for branch in node.get("anyOf", [node])]
    allowed = f"allowed: {allowed_values(node)}"
    if isinstance(node.get("default"), str | int | float):
        allowed += f" (default {show(node['default'])})"
    if value is None and "object" in kinds and "properties" in node:
        return f"is empty; give it fields ({', '.join(node['properties'])}) or leave it out"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{show(value)} is not a finite number; {allowed}"
    if _is_of(value, kinds):
        if not isinstance(value, str):
            return f"{show(value)} is out of range; {allowed}"
        near = difflib.get_close_matches(value[:80], _choices(node), n=1)
        return f"{show(value)} is not allowed; {allowed}" + (f"; did you mean {near[0]}?" if near else "")
    if isinstance(value, str) and {"integer", "number"} & set(kinds) and _is_number(value):
        return f"{show(value)} is text, not a number; take the quotes away; {allowed}"
    wanted = " or ".join(_KINDS[kind] for kind in kinds if kind != "null")
    message = f"{show(value)} is not {wanted}; {allowed}"
    if "string" in kinds and isinstance(value, bool | int | float):
        message += "; put quotes around it if it is meant as text"
    return message


def allowed_values(node: dict[str, Any]) -> str:
    """What a field may hold, in words, from its JSON schema."""
    if "anyOf" in node:
        limits = {key: value for key, value in node.items() if key != "anyOf"}
        kinds = {branch["type"] for branch in node["anyOf"]}
        covered = {"null", "integer"} if "number" in kinds else {"null"}
        branches = [branch for branch in node["anyOf"] if branch["type"] not in covered]
        text = " or ".join(allowed_values({**limits, **branch}) for branch in branches)
        return f"{text}, or null" if "null" in kinds else text
    kind = node["type"]
    if choices := _choices(node):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if kind in ("integer", "number"):
        return " ".join(filter(None, (_KINDS[kind], _allowed_range(node))))
    if kind == "string" and "pattern" in node:
        return _inside_a_sentence(node["description"])
    if kind == "string" and node.get("minLength"):
        return "text that is not empty"
    if kind == "array" and (choices := _choices(node["items"])):
        return f"a list of any of {', '.join(choices)}"
    if kind == "array":
        return f"a list of {_PLURALS[node['items'].get('type', 'object')]}"
    if kind == "object" and "properties" not in node:
        return f"a mapping of names to {_PLURALS[node['additionalProperties']['type']]}"
    if kind == "object":
        return f"a mapping of fields ({', '.join(node['properties'])})"
    return _KINDS[kind]


def _allowed_range(node: Mapping[str, Any]) -> str:
    """`from 1 to 4096`, `from 0, below 1`, `above 0, up to 10`, `from 1 up`, `above 0`."""
    given = [(name, node[name]) for name in _BOUNDS if name in node]
    bounds = {name: str(value) if isinstance(value, int) else f"{value:g}" for name, value in given}
    if set(bounds) == {"minimum", "maximum"}:
        return f"from {bounds['minimum']} to {bounds['maximum']}"
    text = ", ".join(f"{_BOUNDS[name]} {bound}" for name, bound in bounds.items())
    return f"{text} up" if set(bounds) == {"minimum"} else text


def _choices(node: Mapping[str, Any]) -> list[str]:
    return [str(choice) for choice in node.get("enum", [node["const"]] if "const" in node else [])]


def _is_of(value: Any, kinds: Sequence[str]) -> bool:
    """Whether a value is of one of the JSON types (a whole number is a number as well)."""
    if isinstance(value, bool):
        return "boolean" in kinds
    types: dict[str, type | tuple[type, ...]] = {
        "integer": int,
        "number": (int, float),
        "string": str,
        "array": list,
        "object": Mapping,
        "null": type(None),
    }
    return any(isinstance(value, types[kind]) for kind in kinds if kind in types)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _inside_a_sentence(description: str) -> str:
    return f"{description[:1].lower()}{description[1:].rstrip('.')}"
