"""What is whose: only a job's owner and the operator steer it, and read its logs and where its data lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_actor.contract.questions import AskRequest
from orchestrator.endpoint.protocol import Orchestrator
from orchestrator.endpoint.tokens import Caller
from orchestrator.jobs.owner import NotYoursError

_FOR_ALL = (
    "id", "name", "owner", "state", "base_model", "priority", "submitted_at", "started_at", "finished_at", "actor",
    "attempt", "retries", "step", "total_steps", "epoch", "tokens", "tokens_per_s", "eta_s", "samples", "truncated",
    "dropped", "shortened", "longest", "tokens_per_step", "forecast",
)  # fmt: skip
_HIDDEN: dict[str, Any] = {"unread_columns": "", "unreached": "", "unsaved": "", "notes": ()}  # others are null


def shown_to(caller: Caller, view: Mapping[str, Any]) -> dict[str, Any]:
    """A job as somebody may see it: of another's, neither paths nor settings, losses nor reasons."""
    if caller.owns(view["owner"]):
        return dict(view)
    return {name: value if name in _FOR_ALL else _HIDDEN.get(name) for name, value in view.items()}


async def own_job(orchestrator: Orchestrator, caller: Caller, ref: str) -> dict[str, Any]:
    """A job that somebody may steer and read.

    Raises:
        JobNotFoundError: No job has that id or name.
        NotYoursError: It is another's.
    """
    view = await orchestrator.get_job(ref, caller.name)
    if not caller.owns(view["owner"]):
        raise NotYoursError(f"job {view['name']} belongs to {view['owner']}; only they and the operator may do that")
    return view


async def check_question(orchestrator: Orchestrator, caller: Caller, request: AskRequest) -> None:
    """Check that all who are asked are somebody's own jobs, or bare base models.

    Raises:
        NotYoursError: A folder, or another's job, is asked.
    """
    if caller.is_operator:
        return
    for who in request.answerers:
        if who.job_id is None:
            if who.folder is not None or who.chat_template is not None:
                raise NotYoursError(f"{who.name}: only the operator may ask folders; name a job of yours")
            continue
        view = await own_job(orchestrator, caller, who.job_id)
        known = view["output_dir"], view["spec"]["dataset"]["chat_template"]
        if (who.folder, who.chat_template) != known:
            raise NotYoursError(f"{who.name}: the folder and the chat template are not those of the job")
