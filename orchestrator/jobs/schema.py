"""The JSON schema of a job file, from the same models that read it."""

from __future__ import annotations

from typing import Any

from orchestrator.jobs.grid import NOT_IN_A_GRID
from orchestrator.jobs.job import JobSpec
from orchestrator.validation.field_index import ITEM, FieldIndex, dotted, field_index


def job_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a job file: one job, or `defaults` and `jobs`, grids included."""
    index = field_index(JobSpec)
    partial = {"$ref": "#/$defs/PartialJob"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Loray job file",
        "description": "One LoRA job, or several under `jobs`, each merged over `defaults`.",
        "type": "object",
        "if": {"anyOf": [{"required": ["jobs"]}, {"required": ["defaults"]}]},
        "then": {"$ref": "#/$defs/Jobs"},
        "else": {"$ref": "#/$defs/Job"},
        "$defs": {
            "Job": _section(index, (), whole=True),
            "PartialJob": _section(index, (), whole=False),
            "Jobs": {
                "type": "object",
                "properties": {
                    "defaults": {"description": "Fields that the jobs share.", "default": {}, **partial},
                    "jobs": {
                        "description": "The jobs; each is merged over the defaults.",
                        "type": "array",
                        "items": partial,
                        "minItems": 1,
                    },
                },
                "required": ["jobs"],
                "additionalProperties": False,
            },
            "Grid": _grid(index),
        },
    }


def _section(index: FieldIndex, path: tuple[str, ...], whole: bool) -> dict[str, Any]:
    """A mapping of fields; one that is not whole may lack what the defaults give."""
    node = index.nodes[path]
    schema: dict[str, Any] = {key: node[key] for key in ("description",) if key in node}
    schema |= {"type": "object", "additionalProperties": False, "properties": {}}
    for name in index.names(path):
        child = (*path, name)
        schema["properties"][name] = _section(index, child, whole) if index.names(child) else _leaf(index, child)
    if path and "required" not in node:
        schema["default"] = {}
    if not path:
        schema["properties"]["grid"] = {"$ref": "#/$defs/Grid"}
        data = schema["properties"]["dataset"]  # one data set, or a list of them
        data |= {"type": ["object", "array"], "items": data["properties"]["mix"]["items"], "minItems": 1}
    if whole and "required" in node:
        schema["required"] = node["required"]
    return schema


def _leaf(index: FieldIndex, path: tuple[str, ...]) -> dict[str, Any]:
    leaf = {key: value for key, value in index.nodes[path].items() if key != "title"}
    item = (*path, ITEM)
    return {**leaf, "items": _section(index, item, whole=True)} if index.nodes.get(item, {}).get("properties") else leaf


def _grid(index: FieldIndex) -> dict[str, Any]:
    fields = {}
    for path in index.leaves:
        if dotted(path) not in NOT_IN_A_GRID and ITEM not in path:
            item = {key: value for key, value in _leaf(index, path).items() if key != "default"}
            fields[dotted(path)] = {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}
    return {
        "description": "Dotted field to a list of values: one job for each combination.",
        "type": ["object", "null"],
        "default": None,
        "properties": fields,
        "minProperties": 1,
        "additionalProperties": False,
    }
