"""The fields of a configuration model by path: what they may hold, and which one a misspelt name means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

FieldPath = tuple[str | int, ...]
"""The way to a field: ("training", "learning_rate"), or ("actors", 0, "device")."""

ITEM = "[]"
"""Stands for any item of a list, or any value of a free mapping, in the path of an index."""

_LONGEST_NAME = 80
# pydantic writes a bound on a union of numbers under the names of its own arguments.
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


class FieldIndex:
    """The fields of a model, taken from its JSON schema.

    Attributes:
        nodes: Path to the JSON schema of that field, free of references, in the order of the model.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        schema = model.model_json_schema()
        self._definitions: dict[str, Any] = schema.get("$defs", {})
        self.nodes: dict[tuple[str, ...], dict[str, Any]] = {}
        self._walk((), schema)
        sections = {path[:-1] for path in self.nodes if path and path[-1] != ITEM}
        self.leaves = [path for path in self.nodes if path and path not in sections and path[-1] != ITEM]

    def _resolve(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            node = {**self._definitions[node["$ref"].rpartition("/")[2]], **node}
            del node["$ref"]
        return {_BOUNDS.get(key, key): value for key, value in node.items()}

    def _walk(self, path: tuple[str, ...], node: dict[str, Any]) -> None:
        node = self._resolve(node)
        if "anyOf" in node:
            node["anyOf"] = [self._resolve(branch) for branch in node["anyOf"]]
        self.nodes[path] = node
        for branch in node.get("anyOf", [node]):
            for name, child in branch.get("properties", {}).items():
                self._walk((*path, name), child)
            for inside in ("items", "additionalProperties"):
                if isinstance(branch.get(inside), dict):
                    self._walk((*path, ITEM), branch[inside])

    def node(self, path: FieldPath) -> dict[str, Any]:
        """The JSON schema of the field at a path that may hold positions in lists."""
        names: tuple[str, ...] = ()
        for part in path:
            inside = not isinstance(part, int) and (*names, part) in self.nodes
            names = (*names, str(part) if inside else ITEM)
        return self.nodes[names]

    def names(self, section: FieldPath) -> list[str]:
        """The names of the fields of a section."""
        return list(self.node(section).get("properties", {}))

    def required(self, path: FieldPath) -> list[FieldPath]:
        """The fields to give where one is missing: itself, or what a section cannot do without."""
        names = self.node(path).get("required", [])
        return [field for name in names for field in self.required((*path, name))] or [path]

    def in_another_section(self, path: FieldPath) -> str | None:
        """The dotted name of the field that has the name of an unknown one, wherever it is; None where none has it."""
        name = _plain(path)
        fields = [*self.leaves, *self.nodes]
        exact = next((field for field in fields if field and name in (field[-1], dotted(field))), None)
        return dotted(exact) if exact else None

    def similar(self, path: FieldPath) -> str | None:
        """The dotted name of the field that is spelt much like an unknown one, or None.

        Args:
            path: The unknown field; its section is known.
        """
        name = _plain(path)
        if len(name) > _LONGEST_NAME:  # difflib's time is quadratic
            return None
        close = difflib.get_close_matches(name, self.names(path[:-1]), n=1)
        if close and "." not in name:
            return dotted((*path[:-1], close[0]))
        elsewhere = {leaf[-1]: leaf for leaf in reversed(self.leaves)} | {dotted(leaf): leaf for leaf in self.leaves}
        close = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.75)
        return dotted(elsewhere[close[0]]) if close else None


def _plain(path: FieldPath) -> str:
    """The last name of a path as fields are written."""
    return str(path[-1]).lower().replace("-", "_")


@lru_cache
def field_index(model: type[BaseModel]) -> FieldIndex:
    """The fields of a model (made once for each model)."""
    return FieldIndex(model)


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it: `training.learning_rate`, `actors[0].device`."""
    text = ""
    for part in path:
        if isinstance(part, int) or part == ITEM:
            text += ITEM if part == ITEM else f"[{part}]"
        else:
            plain = part if part.isprintable() else ascii(part)
            plain = plain if len(plain) <= _LONGEST_NAME else plain[:_LONGEST_NAME] + "..."
            text += f".{plain}" if text else plain
    return text
