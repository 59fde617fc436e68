"""How Python programs talk to a running orchestrator."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from gpu_actor.contract.errors import (
    InvalidJobError,
    JobFailedError,
    WaitTimeoutError,
)
from orchestrator import formatting
from orchestrator.endpoint.tokens import digest_of, new_token
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.link.choose import find_link, is_elsewhere
from orchestrator.link.http_link import HttpLink
from orchestrator.validation.problems import Problem

if TYPE_CHECKING:
    from gpu_actor.contract.questions import Answer
    from orchestrator.jobs.job import JobSpec

# What submits and asks is imported where it is used: to look at the queue takes half as long without.
JobSource: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | JobSpec"
JobView: TypeAlias = dict[str, Any]

CALL_SECONDS = 60.0
# Describing a base model that is new to the orchestrator can take a while on a slow disk.
SUBMIT_SECONDS = 300.0
POLL_SECONDS = 0.5
_OF_THE_ORCHESTRATOR = ("base_model", "output_dir")

logger = logging.getLogger("loray")


def submit_job(job: JobSource, address: str | None = None, token: str | None = None) -> Job:
    """Submits one job to a running orchestrator.

    Args:
        job: Path of a job file, its content as a dict (relative paths start in the current folder), or a JobSpec.
        address: As of `Client`.
        token: As of `Client`.

    Raises:
        InvalidJobError: The job cannot be accepted; every problem is named.
        ClusterUnavailableError: No orchestrator answers.
    """
    spec = _the_only(job, elsewhere=is_elsewhere(address))  # a mistake is told even when no cluster runs
    return Client(address, token).submit_job(spec)


def read_jobs(
    source: JobSource | Sequence[JobSource], *, goes_on: bool = False, elsewhere: bool = False
) -> list[JobSpec]:
    """Reads and checks jobs without a cluster: every problem of every source is in one error.

    Args:
        source: A path, a mapping or a JobSpec, or several of them.
        goes_on: Whether jobs may be in the queue already, with something in their output folders.
        elsewhere: Whether base models and output folders are those of another machine, which looks at them.

    Raises:
        JobFileError: With every problem.
    """
    several = isinstance(source, Sequence) and not isinstance(source, str)
    sources = cast("Sequence[JobSource]", source) if several else [cast("JobSource", source)]
    from orchestrator.jobs.job import JobFileError
    from orchestrator.jobs.preflight import check_files

    specs: list[JobSpec] = []
    problems: list[Problem] = []
    for number, one in enumerate(sources, start=1):
        try:
            specs += _read_one(one, f"job {number}" if len(sources) > 1 else "job")
        except JobFileError as error:
            problems += error.problems
    # Whether pickled weights may be read is the operator's choice, which only the orchestrator knows.
    problems = problems or check_files(specs, allow_pickle=True, goes_on=goes_on)
    problems = [problem for problem in problems if not (elsewhere and problem.field in _OF_THE_ORCHESTRATOR)]
    if problems:
        raise JobFileError(problems)
    return specs


def _the_only(source: JobSource, *, elsewhere: bool) -> JobSpec:
    specs = read_jobs(source, elsewhere=elsewhere)
    if len(specs) != 1:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the mapping"
        raise InvalidJobError(
            f"{name} holds {len(specs)} jobs and submit_job takes one; use Client().submit(...), which returns a list"
        )
    return specs[0]


def _read_one(source: JobSource, name: str) -> list[JobSpec]:
    from orchestrator.jobs.job import JobSpec
    from orchestrator.jobs.job_file import jobs_from_mapping, load_jobs

    if isinstance(source, JobSpec):
        return [source]
    if isinstance(source, Mapping):
        return jobs_from_mapping(source, name, Path.cwd())
    if isinstance(source, str | os.PathLike):
        return load_jobs([Path(source)])
    raise InvalidJobError(f"{name} is a {type(source).__name__}; give a path, a dict or a JobSpec")


class Client:
    """Talks to the orchestrator of one cluster.

    Args:
        address: URL of an orchestrator's HTTP door, or `host:port` of a Ray cluster; None looks at `LORAY_ADDRESS` and
            `RAY_ADDRESS`, then for one started on this machine.
        token: For a door; None looks at `LORAY_TOKEN`.

    Attributes:
        address: Where the orchestrator is.

    Raises:
        ClusterUnavailableError: No orchestrator answers.
    """

    def __init__(self, address: str | None = None, token: str | None = None) -> None:
        self._link = find_link(address, token)
        self.address = self._link.address

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    def submit(self, jobs: JobSource | Sequence[JobSource]) -> list[Job]:
        """Submits jobs: all of them, or none when one has a problem.

        Args:
            jobs: A path, a mapping or a JobSpec, or several of them. A file may hold many jobs.

        Raises:
            InvalidJobError: The jobs cannot be accepted; every problem is named.
        """
        accepted, remarks = self.accept(read_jobs(jobs, elsewhere=self._link.is_elsewhere))
        for remark in remarks:
            logger.warning(remark)
        return accepted

    def submit_job(self, job: JobSource) -> Job:
        """Submits one job."""
        return self.submit(_the_only(job, elsewhere=self._link.is_elsewhere))[0]

    def accept(self, specs: Sequence[JobSpec]) -> tuple[list[Job], list[str]]:
        """Hands checked jobs to the orchestrator.

        Args:
            specs: What `read_jobs` returned.

        Returns:
            The jobs, and what a person should know about how they were changed.

        Raises:
            JobFileError: The orchestrator refuses them; every problem is named.
        """
        request_id = uuid.uuid4().hex
        remarks: list[str] = []
        if not self._link.is_elsewhere:
            from orchestrator.jobs.staging import stage_jobs

            there = self.ping()
            specs, remarks = stage_jobs(specs, Path(there["storage"]), there["outputs"])
        documents, sent = self._documents(specs, request_id)
        # The same id again, when the answer got lost on its way, finds the jobs that were accepted before.
        answer = self.call("submit", documents, request_id, timeout=SUBMIT_SECONDS, again=True)
        _raise_problems(answer)
        if not isinstance(self._link, HttpLink):
            from orchestrator.cluster.ray_job import note_in_ray_job

            note_in_ray_job(answer["accepted"])
        return [Job(self, view["id"], view["name"]) for view in answer["accepted"]], remarks + sent

    def plan(self, specs: Sequence[JobSpec], policy: str | None = None) -> list[dict[str, Any]]:
        """What would become of jobs if they were submitted now; nothing is.

        Args:
            specs: What `read_jobs` returned.
            policy: Name of a policy to plan with; None: that of the cluster.

        Raises:
            JobFileError: They would not be accepted.
        """
        fields, _ = self._documents(specs, uuid.uuid4().hex)
        answer = self.call("plan", fields, policy, timeout=SUBMIT_SECONDS, again=True)
        _raise_problems(answer)
        return cast("list[dict[str, Any]]", answer["jobs"])

    def _documents(self, specs: Sequence[JobSpec], request_id: str) -> tuple[list[dict[str, Any]], list[str]]:
        """The fields of jobs, and remarks; what they read is sent along if the orchestrator does not see it."""
        if not isinstance(self._link, HttpLink) or not self._link.is_elsewhere:
            return [spec.model_dump(mode="json") for spec in specs], []
        from orchestrator.link.sending import send_jobs

        return send_jobs(specs, self._link, request_id)

    def list_jobs(self, most_over: int | None = None) -> list[JobView]:
        """The jobs that the orchestrator knows, in the order of submission.

        Args:
            most_over: Of those that are over only so many, the newest; None: all, which may be those of years.
        """
        return cast("list[JobView]", self.call("list_jobs", most_over, again=True))

    def job(self, ref: str) -> Job:
        """A job by its id, or the newest one of a name.

        Raises:
            JobNotFoundError: There is none.
        """
        view = self.get_job(ref)
        return Job(self, view["id"], view["name"])

    def get_job(self, ref: str) -> JobView:
        """Everything about a job, by its id or name."""
        return cast("JobView", self.call("get_job", ref, again=True))

    def get_jobs(self, ids: Sequence[str]) -> list[JobView]:
        """Everything about several jobs, by their ids and in their order."""
        return cast("list[JobView]", self.call("get_jobs", list(ids), again=True))

    def cancel(self, ref: str) -> JobView:
        """Ends a job for good, and drops its checkpoints."""
        return cast("JobView", self.call("cancel", ref))

    def pause(self, ref: str) -> JobView:
        """Takes a job from its actor, or out of the queue, with a checkpoint of where it stands."""
        return cast("JobView", self.call("pause", ref))

    def resume(self, ref: str) -> JobView:
        """Puts a paused job back into the queue."""
        return cast("JobView", self.call("resume", ref))

    def retry(self, ref: str, *, from_start: bool = False) -> JobView:
        """Puts a failed or cancelled job back into the queue; it goes on from its newest checkpoint or `from_start`."""
        return cast("JobView", self.call("retry", ref, from_start))

    def metrics(self, ref: str, skip: int = 0, most: int | None = None) -> list[dict[str, Any]]:
        """The rows of a job's `metrics.jsonl`, without the first `skip`; or `most`, evenly spread over all of them."""
        return cast("list[dict[str, Any]]", self.call("metrics", ref, skip, most, again=True))

    def events(self, ref: str, after: int = 0) -> list[dict[str, Any]]:
        """What happened to a job: `seq`, `time` (Unix seconds) and `message`, from the `seq` after `after`."""
        return cast("list[dict[str, Any]]", self.call("events", ref, after, again=True))

    def recent_events(self, most: int = 20) -> list[dict[str, Any]]:
        """The latest events of all jobs, oldest first: `seq`, `time`, `job_id`, `name` and `message`."""
        return cast("list[dict[str, Any]]", self.call("recent_events", most, again=True))

    def timeline(self, ids: Sequence[str]) -> dict[str, Any]:
        """Where some jobs were when, and how full the places were: see `orchestrator.reporting.timeline`."""
        return cast("dict[str, Any]", self.call("timeline", list(ids), again=True))

    def cluster(self) -> dict[str, Any]:
        """The orchestrator, its actors, and how many jobs are in which state."""
        return cast("dict[str, Any]", self.call("cluster", again=True))

    def overview(self) -> dict[str, Any]:
        """What `cluster` returns, `live_jobs` (all that are not over, without `spec`) and the latest `events`."""
        return cast("dict[str, Any]", self.call("overview", again=True))

    def ask(self, jobs: Sequence[str], *questions: str, **settings: Any) -> list[Answer]:
        """Lets jobs answer questions, at their newest step, while they train on.

        Args:
            jobs: Names or ids of jobs, or output folders.
            questions: What each of them is asked.
            settings: Further fields of `Inquiry`: `base`, `step`, `system`, `sampling`, ...

        Returns:
            The answers, question by question in the order of `jobs`; one that could not be made has an `error`.
        """
        from orchestrator.asking.inquiry import Inquiry, answers

        found: list[Answer] = []
        for state in answers(Inquiry(tuple(jobs), questions, **settings), self.call):
            found = state
        return found

    def add_token(self, owner: str) -> str:
        """Lets somebody in by the HTTP door.

        Args:
            owner: Their name, which their jobs bear; `operator` may do everything.

        Returns:
            The token. It is made here, and the orchestrator gets no more of it than a hash.

        Raises:
            OwnerError: They have a token already, or it is no name.
        """
        token = new_token()
        self.call("add_token", owner, digest_of(token), again=True)
        return token

    def tokens(self) -> list[dict[str, Any]]:
        """Who has a token: `owner` and `created_at` (Unix seconds) of each."""
        return cast("list[dict[str, Any]]", self.call("tokens", again=True))

    def revoke_token(self, owner: str) -> None:
        """Takes somebody's token back at once."""
        self.call("revoke_token", owner)

    def ping(self) -> dict[str, Any]:
        """Who answers: version, storage folder, where results go, process id and node of the orchestrator."""
        return cast("dict[str, Any]", self.call("ping", again=True))

    def call(self, method: str, *arguments: Any, timeout: float = CALL_SECONDS, again: bool = False) -> Any:
        """Calls a method of the orchestrator.

        Args:
            method: Its name.
            arguments: Of the call.
            timeout: Seconds to wait for the answer.
            again: The call may be repeated when the orchestrator dies before it answers.
        """
        return self._link.call(method, arguments, timeout, again=again)


def _raise_problems(answer: Mapping[str, Any]) -> None:
    if answer["problems"]:
        from orchestrator.jobs.job import JobFileError

        raise JobFileError([Problem(**problem) for problem in answer["problems"]])


class Job:
    """One submitted job. Every method asks the orchestrator, so that the answer is never stale."""

    def __init__(self, client: Client, id: str, name: str) -> None:
        self.client = client
        self.id = id
        self.name = name

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, name={self.name!r})"

    def status(self) -> JobState:
        """The state: QUEUED, RUNNING, PAUSED, SUCCEEDED, FAILED or CANCELLED."""
        return JobState(self.info()["state"])

    def info(self) -> JobView:
        """Everything about the job: state, progress, speed, why it waits, why it ended."""
        return self.client.get_job(self.id)

    def wait(self, timeout: float | None = None) -> JobView:
        """Waits for the end of the job and returns its info.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            JobFailedError: It ended FAILED or CANCELLED.
            WaitTimeoutError: It is still going on after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            view = self.info()
            state = JobState(view["state"])
            if state is JobState.SUCCEEDED:
                return view
            if state in TERMINAL:
                raise JobFailedError(f"job {self.name!r} ended {state.value}: {view['reason'] or 'no reason given'}")
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(
                    f"job {self.name!r} is {state.value} after {timeout:g} s; it goes on, and can be waited for again"
                )
            time.sleep(min(left, POLL_SECONDS))

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of the job's `metrics.jsonl`."""
        return self.client.metrics(self.id)

    def events(self) -> list[dict[str, Any]]:
        """What happened to the job: `seq`, `time` (Unix seconds) and `message`."""
        return self.client.events(self.id)

    def logs(self) -> str:
        """Events and metrics as lines of text, in the order in which they happened."""
        entries = sorted(self.events() + self.metrics(), key=lambda entry: entry.get("time") or 0.0)
        return "".join(f"{formatting.log_line(entry)}\n" for entry in entries)

    def ask(self, question: str, **settings: Any) -> Answer:
        """Lets the job answer a question; `settings` are further fields of `Inquiry`, such as `step` or `sampling`."""
        (answer,) = self.client.ask([self.id], question, **settings)
        return answer

    def cancel(self) -> JobView:
        """Ends the job for good, and drops its checkpoints."""
        return self.client.cancel(self.id)

    def pause(self) -> JobView:
        """Takes the job from its actor, or out of the queue, with a checkpoint of where it stands."""
        return self.client.pause(self.id)

    def resume(self) -> JobView:
        """Puts the paused job back into the queue."""
        return self.client.resume(self.id)

    def retry(self, *, from_start: bool = False) -> JobView:
        """Puts the failed or cancelled job back into the queue, from its newest checkpoint on or `from_start`."""
        return self.client.retry(self.id, from_start=from_start)
