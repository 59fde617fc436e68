"""/openapi.json: what the door understands, from the very models that read it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from orchestrator.endpoint.openai.requests import ChatRequest, CompletionRequest
from orchestrator.endpoint.verbs import FILES, VERBS, Verb
from orchestrator.jobs.job import JobSpec
from orchestrator.version import __version__

_REF = "#/components/schemas/{model}"
_ERROR = {"description": "What went wrong, as a JSON object `error` with a `message`."}
Json = dict[str, Any]
_Mode = Literal["validation", "serialization"]


@cache
def openapi() -> Json:
    """The document, by OpenAPI 3.1."""
    models: list[type[BaseModel]] = [JobSpec, ChatRequest, CompletionRequest]
    models += [verb.arguments for verb in VERBS.values()]
    asked: list[tuple[str, _Mode, TypeAdapter[Any]]] = [
        (model.__name__, "validation", TypeAdapter(model)) for model in dict.fromkeys(models)
    ]
    told: list[tuple[str, _Mode, TypeAdapter[Any]]] = [
        (verb.name, "serialization", TypeAdapter(verb.answer)) for verb in VERBS.values()
    ]
    schemas, components = TypeAdapter.json_schemas([*asked, *told], ref_template=_REF)
    paths: dict[str, Json] = {}
    for verb in VERBS.values():
        operation = _operation(verb, schemas[verb.name, "serialization"])
        paths.setdefault(verb.path, {})[verb.method.lower()] = operation
    for path, model in (("/v1/chat/completions", ChatRequest), ("/v1/completions", CompletionRequest)):
        body = {"required": True, "content": _json(_ref(model))}
        said = "A conversation gone on with." if model is ChatRequest else "Texts or token ids gone on with."
        paths[path] = {
            "post": {**_answers({}), "operationId": path.split("/")[2], "summary": said, "requestBody": body}
        }
    listed = _answers({"type": "object"})
    paths["/v1/models"] = {"get": {**listed, "operationId": "models", "summary": "Who can be asked, as `model`."}}
    paths[f"{FILES}/{{digest}}/{{name}}"] = {"put": _upload()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Loray", "version": __version__, "description": "Jobs, and what they have learned."},
        "paths": paths,
        "components": {
            "schemas": components["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(verb: Verb, answer: Json) -> Json:
    fields = verb.arguments.model_json_schema(ref_template=_REF).get("properties", {})
    places = dict.fromkeys(verb.in_path, "path") if verb.has_body else dict.fromkeys(fields, "query")
    places |= dict.fromkeys(verb.in_path, "path")
    found: Json = {
        **_answers(answer),
        "operationId": verb.name,
        "summary": f"{verb.summary} For {verb.access.value}.",
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": fields[name]}
            for name, place in places.items()
        ],
    }
    if verb.has_body and len(fields) > len(verb.in_path):
        found["requestBody"] = {"required": True, "content": _json(_ref(verb.arguments))}
    return found


def _upload() -> Json:
    hexadecimal = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    places = {
        "digest": ("path", hexadecimal),
        "name": ("path", {"type": "string"}),
        "folder": ("query", {"const": "true"}),
    }
    return {
        **_answers({"type": "object"}),
        "operationId": "upload",
        "summary": "Send a file that a job reads, under the SHA-256 of its content; jobs name it `upload:DIGEST/NAME`.",
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": schema}
            for name, (place, schema) in places.items()
        ],
        "requestBody": {"required": True, "content": {"application/octet-stream": {}}},
    }


def _answers(schema: Json) -> Json:
    return {"responses": {"200": {"description": "Done.", "content": _json(schema)}, "default": _ERROR}}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}
