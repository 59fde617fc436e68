"""The verbs of the orchestrator as HTTP requests: one table for the door, for its clients and for /openapi.json.

A verb's arguments are the fields of a model, in the order in which the orchestrator's method takes them. Fields that
the path names stand in the path, the others in the query of a GET and DELETE, or in the JSON body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field

from gpu_actor.contract.questions import Answer, AskRequest
from gpu_actor.contract.strict import Strict

ROOT = "/api"
Ref = Annotated[str, Field(min_length=1, max_length=256, description="Id or name of a job.")]


class Access(Enum):
    """Who may use a verb."""

    ANYBODY = "everybody with a token"
    OWNER = "the job's owner, and the operator"
    OPERATOR = "the operator"


class Nothing(Strict):
    """No argument."""


class ListedJobs(Strict):
    """Which jobs are meant."""

    most_over: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Of jobs that are over only so many, the newest; null: all."
    )


class OneJob(Strict):
    """Which job is meant."""

    ref: Ref


class MetricRows(OneJob):
    """Rows of a job's `metrics.jsonl`."""

    skip: int = Field(default=0, ge=0, description="How many of the first rows are left out.")
    most: int | None = Field(
        default=None, ge=2, le=10_000, description="So many of steps and of evaluations, spread over all; null: all."
    )


class EventsAfter(OneJob):
    """Events of a job."""

    after: int = Field(default=0, ge=0, description="The number after which they begin.")


class RecentEvents(Strict):
    """Events of all jobs."""

    most: int = Field(default=20, ge=1, le=1000, description="How many of the latest.")


class Retry(OneJob):
    """How a job starts again."""

    from_start: bool = Field(default=False, description="Use nothing of the old run.")


class SubmitRequest(Strict):
    """Jobs to accept, all or none."""

    jobs: list[dict[str, Any]] = Field(max_length=10_000, description="Each as in a job file, its paths absolute.")
    request_id: str = Field(
        min_length=8, max_length=128, description="Chosen by the client; the same again returns the same jobs."
    )


class PlanRequest(Strict):
    """Jobs that might be submitted."""

    jobs: list[dict[str, Any]] = Field(max_length=10_000, description="Each as in a job file, its paths absolute.")
    policy: str | None = Field(default=None, description="Name of a policy to plan with; null: that of the cluster.")


class JobIds(Strict):
    """Several jobs."""

    ids: list[str] = Field(max_length=100_000, description="Ids of jobs.")


class AskBody(Strict):
    """A question, or several."""

    request: AskRequest


class OneRequest(Strict):
    """One request of questions at one actor."""

    actor: str = Field(max_length=512, description="Name of the actor, as the answer to the questions gave it.")
    request_id: str = Field(max_length=256, description="As the answer to the questions gave it.")


class NewToken(Strict):
    """A token that is given to somebody."""

    owner: str = Field(max_length=64, description="Whose it is.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the token, hexadecimal.")


class OneOwner(Strict):
    """Somebody who has a token."""

    owner: str = Field(max_length=64, description="Their name.")


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        name: Of the orchestrator's method.
        method: Of HTTP.
        path: With the names of fields in braces.
        arguments: Their model.
        answer: What comes back.
        summary: What it does, for /openapi.json.
        access: Who may use it.
    """

    name: str
    method: str
    path: str
    arguments: type[Strict]
    answer: Any
    summary: str
    access: Access = Access.ANYBODY

    @property
    def in_path(self) -> tuple[str, ...]:
        """The arguments that stand in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def has_body(self) -> bool:
        """Whether further arguments are a JSON body."""
        return self.method == "POST"


FILES = f"{ROOT}/files"
"""Below it the files of jobs are sent, each under the SHA-256 of its content."""


def file_path(digest: str, name: str) -> str:
    """The path of a file that is sent."""
    return f"{FILES}/{digest}/{quote(name, safe='')}"


Json = dict[str, Any]
_JOB = f"{ROOT}/jobs/{{ref}}"
VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("ping", "GET", f"{ROOT}/ping", Nothing, Json, "Who answers."),
        Verb("cluster", "GET", f"{ROOT}/cluster", Nothing, Json, "The orchestrator, its actors, jobs by state."),
        Verb("overview", "GET", f"{ROOT}/overview", Nothing, Json, "What cluster has, live jobs, latest events."),
        Verb("list_jobs", "GET", f"{ROOT}/jobs", ListedJobs, list[Json], "Jobs in the order of arrival."),
        Verb("submit", "POST", f"{ROOT}/jobs", SubmitRequest, Json, "Accept jobs, all or none."),
        Verb("get_job", "GET", _JOB, OneJob, Json, "One job."),
        Verb("get_jobs", "POST", f"{ROOT}/views", JobIds, list[Json], "Several jobs by their ids."),
        Verb("metrics", "GET", f"{_JOB}/metrics", MetricRows, list[Json], "Rows of its metrics.", Access.OWNER),
        Verb("events", "GET", f"{_JOB}/events", EventsAfter, list[Json], "What happened to it.", Access.OWNER),
        Verb("recent_events", "GET", f"{ROOT}/events", RecentEvents, list[Json], "What happened to your jobs of late."),
        Verb("cancel", "POST", f"{_JOB}/cancel", OneJob, Json, "Give a job up.", Access.OWNER),
        Verb("pause", "POST", f"{_JOB}/pause", OneJob, Json, "Hold a job, with a checkpoint.", Access.OWNER),
        Verb("resume", "POST", f"{_JOB}/resume", OneJob, Json, "Let a paused job go on.", Access.OWNER),
        Verb("retry", "POST", f"{_JOB}/retry", Retry, Json, "Queue a failed or cancelled job again.", Access.OWNER),
        Verb("plan", "POST", f"{ROOT}/plan", PlanRequest, Json, "What would become of jobs."),
        Verb("timeline", "POST", f"{ROOT}/timeline", JobIds, Json, "Where jobs were when."),
        Verb("ask", "POST", f"{ROOT}/questions", AskBody, list[Json], "Let actors begin to answer."),
        Verb(
            "answers",
            "GET",
            f"{ROOT}/questions/{{actor}}/{{request_id}}",
            OneRequest,
            list[Answer] | None,
            "The answers as far as they are made; null: not begun.",
        ),
        Verb("withdraw", "DELETE", f"{ROOT}/questions/{{actor}}/{{request_id}}", OneRequest, None, "Drop a question."),
        Verb("tokens", "GET", f"{ROOT}/tokens", Nothing, list[Json], "Who has a token.", Access.OPERATOR),
        Verb("add_token", "POST", f"{ROOT}/tokens", NewToken, None, "Let somebody in.", Access.OPERATOR),
        Verb("revoke_token", "DELETE", f"{ROOT}/tokens/{{owner}}", OneOwner, None, "Take it back.", Access.OPERATOR),
    )
}
