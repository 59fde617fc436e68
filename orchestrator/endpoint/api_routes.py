"""The verbs under /api, as the table of `verbs` has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from gpu_actor.contract.strict import Strict
from orchestrator.endpoint.access import check_question, own_job, shown_to
from orchestrator.endpoint.errors import UNPROCESSABLE
from orchestrator.endpoint.protocol import Orchestrator
from orchestrator.endpoint.reading import caller_of, read_model, refused
from orchestrator.endpoint.tokens import Caller
from orchestrator.endpoint.verbs import VERBS, Access, AskBody, PlanRequest, SubmitRequest, Verb
from orchestrator.jobs.owner import NotYoursError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Resolve = Callable[[Mapping[str, Any], str], dict[str, Any]]
"""Of the fields of a job and its owner: the fields with paths in place of references."""


def add_verbs(app: web.Application, orchestrator: Orchestrator, resolve: Resolve) -> None:
    """Put every verb on its path.

    Args:
        app: The server's.
        orchestrator: What carries them out.
        resolve: Puts paths in place of a job's references.
    """
    for verb in VERBS.values():
        app.router.add_route(verb.method, verb.path, _handler(verb, orchestrator, resolve))


def _handler(verb: Verb, orchestrator: Orchestrator, resolve: Resolve) -> Handler:
    adapter: TypeAdapter[Any] = TypeAdapter(verb.answer)

    async def handle(request: web.Request) -> web.StreamResponse:
        caller = caller_of(request)
        arguments = await _arguments(verb, request)
        # shielded: a client that leaves does not stop what it has ordered half-way
        found = await asyncio.shield(_carry_out(verb, orchestrator, resolve, caller, arguments))
        refused_jobs = isinstance(found, dict) and bool(found.get("problems"))
        body = await asyncio.to_thread(adapter.dump_json, found)
        return web.Response(
            body=body, status=UNPROCESSABLE if refused_jobs else 200, content_type="application/json", charset="utf-8"
        )

    return handle


async def _arguments(verb: Verb, request: web.Request) -> Strict:
    in_path = {name: request.match_info[name] for name in verb.in_path}
    if verb.has_body:
        return await read_model(request, verb.arguments, in_path)
    fields = {**request.query, **in_path}
    try:
        return verb.arguments.model_validate(fields, strict=False)  # a query has text alone
    except ValidationError as error:
        raise refused(error, fields, verb.arguments) from None


async def _carry_out(
    verb: Verb, orchestrator: Orchestrator, resolve: Resolve, caller: Caller, arguments: Strict
) -> Any:
    """What the orchestrator answers, as far as it concerns the caller."""
    values = dict(arguments)
    if verb.access is Access.OPERATOR and not caller.is_operator:
        raise NotYoursError(f"only the operator may do that, and you are {caller.name}")
    if verb.access is Access.OWNER:
        values["ref"] = (await own_job(orchestrator, caller, values["ref"]))["id"]
    if isinstance(arguments, AskBody):
        await check_question(orchestrator, caller, arguments.request)
        values["request"] = arguments.request.model_dump()
    if isinstance(arguments, SubmitRequest | PlanRequest):
        values["jobs"] = [resolve(job, caller.name) for job in arguments.jobs]
    if verb.name in ("get_job", "submit", "plan", "recent_events", "overview"):
        values["owner"] = caller.name
    found = await getattr(orchestrator, verb.name)(*values.values())
    if verb.name == "get_job":
        return shown_to(caller, found)
    if verb.name in ("list_jobs", "get_jobs"):
        return [shown_to(caller, view) for view in found]
    if verb.name == "overview":
        return {**found, "live_jobs": [shown_to(caller, view) for view in found["live_jobs"]]}
    return found
