"""Who answers as which `model`: base models that actors host, and jobs as `job` or `job@step`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_actor.contract.errors import JobNotFoundError
from gpu_actor.contract.questions import Answerer, Step
from gpu_actor.paths import file_names
from orchestrator.endpoint.errors import NOT_FOUND, RequestError
from orchestrator.endpoint.protocol import Orchestrator
from orchestrator.endpoint.tokens import Caller
from orchestrator.jobs.states import JobState

_MOST_LISTED = 1000  # jobs whose checkpoints are looked for


@dataclass(frozen=True)
class Model:
    """What a `model` of a request means."""

    base_model: str
    answerer: Answerer


async def find_model(orchestrator: Orchestrator, caller: Caller, name: str) -> Model:
    """Who is meant by the name of a model.

    Raises:
        RequestError: Nobody that the caller may ask.
    """
    ref, _, step = name.rpartition("@") if "@" in name else (name, "", "latest")
    wanted = _step(step)
    if wanted is not None:
        try:
            view = await orchestrator.get_job(ref, caller.name)
        except JobNotFoundError:
            view = None
        if view is not None and caller.owns(view["owner"]):
            return Model(
                view["spec"]["base_model"],
                Answerer(
                    name=name,
                    folder=view["output_dir"],
                    job_id=view["id"],
                    step=wanted,
                    total_steps=view["total_steps"] or None,
                    chat_template=view["spec"]["dataset"]["chat_template"],
                ),
            )
    if name in await _hosted(orchestrator):
        return Model(name, Answerer(name=name))
    raise RequestError(
        NOT_FOUND,
        f"no job of yours is called {name!r}, and no actor hosts a base model of that name; allowed: what /v1/models "
        "lists, a job's name or id, or either with @STEP, @best or @latest",
        "model",
        "model_not_found",
    )


def _step(text: str) -> Step | None:
    if text in ("latest", "best"):
        return "best" if text == "best" else "latest"
    return int(text) if text.isdecimal() and len(text) < 10 else None


async def _hosted(orchestrator: Orchestrator) -> list[str]:
    actors = (await orchestrator.cluster())["actors"]
    return sorted({actor["base_model"] for actor in actors if actor["state"] == "ready" and actor["base_model"]})


async def list_models(orchestrator: Orchestrator, caller: Caller) -> list[dict[str, Any]]:
    """Every model that the caller may ask, in OpenAI's form: bases, then jobs, the newest first."""
    bases = [_entry(base, 0, "loray") for base in await _hosted(orchestrator)]
    newest = {view["name"]: view for view in await orchestrator.list_jobs(_MOST_LISTED, caller.name)}
    views = sorted(newest.values(), key=lambda view: -view["submitted_at"])
    return bases + await asyncio.to_thread(_jobs, views[:_MOST_LISTED])


def _jobs(views: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Jobs that can answer: that train, have ended well, or left a checkpoint."""
    found = []
    for view in views:
        steps = _checkpoints(Path(view["output_dir"])) if JobState(view["state"]) is not JobState.SUCCEEDED else []
        can_answer = view["state"] in (JobState.RUNNING, JobState.SUCCEEDED) or steps
        names = [view["name"], *(f"{view['name']}@{step}" for step in steps)] if can_answer else []
        found += [_entry(name, int(view["submitted_at"]), view["owner"]) for name in names]
    return found


def _checkpoints(folder: Path) -> list[int]:
    steps = (file_names.checkpoint_step(path.name) for path in folder.glob(file_names.CHECKPOINTS))
    return sorted(step for step in steps if step is not None)


def _entry(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
