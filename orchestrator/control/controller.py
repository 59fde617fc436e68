"""The orchestrator: a detached actor on the head node that keeps the job table and drives the cluster once a tick.

It is an asynchronous actor: every method runs in one event loop, between whose awaits nothing else happens. Ray
restarts it when it dies and repeats the calls that were under way, so each call that changes something may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.contract.head_files import FileRequest, ListSaved, ReadSaved
from gpu_actor.contract.messages import one_line
from gpu_actor.contract.questions import Answer
from orchestrator.asking.questions import Questions
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.cluster.connection import CONTROLLER, NAMESPACE
from orchestrator.cluster.environment import shared_environment
from orchestrator.cluster.fleet import Fleet
from orchestrator.control import job_verbs
from orchestrator.control.admission import Admission, Submissions
from orchestrator.control.job_reading import JobDict, JobReading
from orchestrator.control.reconcile import Reconciler
from orchestrator.control.snapshot import SnapshotBuilder
from orchestrator.endpoint.references import reach, uploads
from orchestrator.jobs.owner import OPERATOR, check_owner
from orchestrator.jobs.states import TERMINAL, JobState
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.profiles import Profiles
from orchestrator.owners.limits import OwnerLimits
from orchestrator.reporting.client_views import actor_views
from orchestrator.reporting.dashboard_rows import TaskRows
from orchestrator.reporting.finishes import Finishes
from orchestrator.reporting.metrics import ActorMetrics, Metrics
from orchestrator.reporting.notices import Notices
from orchestrator.reporting.trackers import Trackers
from orchestrator.scheduler.predicted_memory import predicted_peaks
from orchestrator.storage.head_files import HeadFiles
from orchestrator.storage.unused_uploads import UnusedUploads
from orchestrator.store.records import JobRecord
from orchestrator.store.storage_lock import hold
from orchestrator.version import __version__

if TYPE_CHECKING:
    from orchestrator.store.store import Store

logger = logging.getLogger("loray.controller")


class Controller(JobReading):
    """The orchestrator. Plain class; `controller_actor.start_or_attach_controller` makes the Ray actor of it."""

    def __init__(self, config: ClusterConfig) -> None:
        """Open the store and start looking after the cluster. Must be called in a running event loop.

        Args:
            config: The cluster file.

        Raises:
            ClusterFileError: It names a tracker or a program that is not installed.
            StoreError: Another orchestrator uses the storage, or the job table cannot be opened.
        """
        # Not above: every command imports this module to look the orchestrator up, and these would be a third of that.
        from orchestrator.endpoint.server import Door
        from orchestrator.store.store import Store

        self._config = config
        self._lock = hold(config.state_folder)
        self._store = Store(config.database_url)
        env_vars = shared_environment()
        self._fleet = Fleet(config, self._store, env_vars)
        self._bases = BaseCatalog(env_vars, config.trust_remote_code)
        self._head_files = HeadFiles(self._store, config)
        self._uploads = UnusedUploads(self._store, uploads(config.state_folder))
        self._rows = TaskRows(self._store)
        self._trackers = Trackers(self._store, config)
        self._notices = Notices(self._store, config)
        profiles = Profiles(self._store)
        snapshots = SnapshotBuilder(
            self._store, self._fleet, self._bases, profiles, OwnerLimits(config, self._store), config.scheduler.makespan
        )
        admission = Admission(self._store, self._fleet, self._bases, snapshots, config)
        self._submissions = Submissions(config, self._store, self._bases, admission)
        self._questions = Questions(self._store, self._fleet, reach(OPERATOR, config))
        self._reconciler = Reconciler(
            self._store,
            self._fleet,
            self._bases,
            self._job_assigned,
            self._job_retried,
            self._job_over,
            profiles,
            snapshots,
            config.scheduler.policy,
        )
        finishes = Finishes(lambda: self._reconciler.snapshot().view, config.scheduler.policy)
        super().__init__(self._store, self._reconciler.progress, finishes)
        self._metrics = Metrics()
        self._since = time.time()
        self._trouble: str | None = None
        self._adopted = False
        self._wake = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        places = config.state_folder, config.outputs
        self._door = Door(self, config.http, *places) if config.http.port is not None else None
        self._tokens_changed()
        self._ticking = asyncio.get_running_loop().create_task(self._run())

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            started = time.monotonic()
            self._wake.clear()
            try:
                await self._tick()
                self._trouble = None
            except Exception as error:
                self._trouble = f"{type(error).__name__}: {one_line(error)}"
                logger.exception("a tick failed")
            self._metrics.tick(time.monotonic() - started)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._config.scheduler.tick_seconds)

    async def _tick(self) -> None:
        if not self._adopted:
            await self._store.turn(self._take_over)
        for loss in await self._reconciler.tick():
            self._metrics.actor_lost(loss.kind.value)
        self._metrics.jobs(self._store.counts())
        decision = self._reconciler.decision
        predicted = {}
        if decision is not None:
            self._metrics.decided(decision.plan, decision.seconds)
            predicted = predicted_peaks(decision.view)
        members = [(member, member.report) for member in self._fleet.members.values() if member.report]
        self._metrics.actors(
            ActorMetrics(member.name, member.place.id, report, member.load_seconds, predicted.get(member.place.id, 0.0))
            for member, report in members
        )
        self._timeline.note([(member.place.id, report) for member, report in members])
        self._losses.note(self._reconciler.progress.counters)
        self._uploads.look()

    def _take_over(self) -> None:
        """Go on where an earlier process stopped, and start what the cluster file wants to be hosted from the start."""
        self._fleet.discover()
        self._fleet.adopt()
        for place in self._fleet.places.values():
            if place.settings.base_model and self._fleet.at(place.id) is None:
                self._fleet.start(place.id, place.settings.base_model)
        for job in self._store.jobs([state for state in JobState if state not in TERMINAL]):
            if job.attempt:
                self._job_started(job)
            else:
                self._rows.accepted(job)
        self._adopted = True

    def _job_assigned(self, job: JobRecord) -> None:
        self._metrics.assigned(time.time() - job.queued_at)
        self._job_started(job)

    def _job_retried(self, _job: JobRecord) -> None:
        self._metrics.retried("actor lost")

    def _job_started(self, job: JobRecord) -> None:
        self._rows.started(job)
        self._trackers.changed(job)

    def _job_over(self, job: JobRecord) -> None:
        self._rows.over(job.id)
        self._trackers.changed(job)
        self._notices.over(job)
        if job.state is JobState.SUCCEEDED and job.finished_at is not None:
            self._metrics.succeeded(job.finished_at - job.submitted_at)

    async def wait_for_start(self, job_id: str) -> None:
        """Wait until a job is given to an actor, or over."""
        await self._rows.wait_for_start(job_id)

    async def watch(self, job_id: str, _start: None) -> str:
        """Wait for the end of a job; returns its state. Ray shows the call as a task of the job's name.

        Args:
            job_id: Which job.
            _start: What `wait_for_start` returned; until then Ray shows the call as pending.

        Raises:
            JobNotFoundError: No job has that id.
            JobFailedError: It failed or was cancelled; the message is its reason.
        """
        return await self._rows.watch(job_id)

    # -- asking --------------------------------------------------------------------------------------------------

    async def ping(self) -> dict[str, Any]:
        """Who this is, where its state lives, and where its HTTP door is."""
        if self._door is not None:
            await self._door.tried()
        return {
            "http": None if self._door is None else {"url": self._door.url, "problem": self._door.problem},
            "version": __version__,
            "storage": str(self._config.state_folder),
            "outputs": self._config.outputs,
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
        }

    async def ask(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let actors begin to answer a request.

        Args:
            request: Fields of `AskRequest`.

        Returns:
            The fields of each `asking.Part`.

        Raises:
            AdapterError: A folder lies outside the allowed ones.
            ClusterUnavailableError: An actor is gone, or does not take it.
        """
        return await self._questions.ask(request)

    async def answers(self, actor: str, request_id: str) -> list[Answer] | None:
        """The answers of an actor to a request as far as they are made; None: it has not begun.

        Raises:
            ClusterUnavailableError: It is gone, or does not answer.
        """
        return await self._questions.answers(actor, request_id)

    async def withdraw(self, actor: str, request_id: str) -> None:
        """Let an actor drop a request with its answers: nobody waits for them."""
        await self._questions.withdraw(actor, request_id)

    async def head_files(self, request: FileRequest | ListSaved | ReadSaved) -> Any:
        """What an actor on a node with other disks wants of this one's; see `HeadFiles.answer`."""
        return await self._head_files.answer(request)

    async def cluster(self) -> dict[str, Any]:
        """The orchestrator, its actors, the number of jobs by state, and when the queue will be empty."""
        await self._finishes.refresh()
        return {
            "controller": {
                **await self.ping(),
                "since": self._since,
                "trouble": self._trouble,
                "tick_seconds": self._config.scheduler.tick_seconds,
                "policy": self._config.scheduler.policy,
            },
            "actors": actor_views(self._fleet, self._store.jobs([JobState.RUNNING])),
            "jobs": {state.value: count for state, count in self._store.counts().items()},
            "forecast": self._finishes.of_queue(
                [job.id for job in self._store.jobs([JobState.QUEUED, JobState.RUNNING])]
            ),
        }

    async def overview(self, owner: str = OPERATOR) -> dict[str, Any]:
        """A picture of the cluster by one question, for who asks again and again.

        Args:
            owner: Whose events are told; the operator hears all.

        Returns:
            What `cluster` returns; `live_jobs`, all that are not over, without their specifications; and `events`.
        """
        live = [{name: value for name, value in view.items() if name != "spec"} for view in await self.list_jobs(0)]
        return {**await self.cluster(), "live_jobs": live, "events": await self.recent_events(owner=owner)}

    # -- tokens --------------------------------------------------------------------------------------------------

    async def tokens(self) -> list[dict[str, Any]]:
        """Who has a token of the HTTP door: `owner` and `created_at` of each."""
        return [{"owner": token.owner, "created_at": token.created_at} for token in self._store.tokens()]

    async def add_token(self, owner: str, digest: str) -> None:
        """Let somebody in by the HTTP door, by the SHA-256 of a token.

        Raises:
            OwnerError: They have another token, or no name that an owner can have.
        """
        check_owner(owner)
        await self._store.turn(lambda: self._store.add_token(owner, digest))
        self._tokens_changed()

    async def revoke_token(self, owner: str) -> None:
        """Let somebody in no more; their jobs go on.

        Raises:
            OwnerError: They have no token.
        """
        await self._store.turn(lambda: self._store.remove_token(owner))
        self._tokens_changed()

    def _tokens_changed(self) -> None:
        if self._door is not None:
            self._door.tokens.given = {token.owner: token.digest for token in self._store.tokens()}

    # -- submitting ----------------------------------------------------------------------------------------------

    async def check(self, jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """What keeps jobs from being accepted; nothing is accepted.

        Args:
            jobs: Fields of `JobSpec`, paths absolute.
        """
        return await self._submissions.check(jobs)

    async def plan(
        self, jobs: Sequence[Mapping[str, Any]], policy: str | None = None, owner: str = OPERATOR
    ) -> dict[str, Any]:
        """What would become of jobs if they were submitted now; nothing is accepted.

        Args:
            jobs: Fields of `JobSpec`, paths absolute.
            policy: Name of a policy to plan with; None: that of this cluster.
            owner: Whose they would be.

        Returns:
            `jobs`, a row for each, and `problems`; one of them is empty.

        Raises:
            ClusterFileError: There is no such policy.
        """
        return await self._submissions.plan(jobs, policy, owner, lambda: self._reconciler.snapshot().view)

    async def submit(self, jobs: Sequence[Mapping[str, Any]], request_id: str, owner: str = OPERATOR) -> dict[str, Any]:
        """Accept jobs, all or none.

        Args:
            jobs: Fields of `JobSpec`, paths absolute.
            request_id: Chosen by the client; the same request again returns the jobs that it made before.
            owner: Whose they are.

        Returns:
            `accepted` (the jobs) and `problems`; one of them is empty.
        """
        self._refuse_at_the_end()
        accepted, problems = await self._submissions.submit(jobs, request_id, owner)
        for job in accepted:
            if job.state not in TERMINAL:
                self._rows.accepted(job)
        self._wake.set()
        return {
            "accepted": [self._view(job) for job in accepted],
            "problems": [asdict(problem) for problem in problems],
        }

    # -- changing ------------------------------------------------------------------------------------------------

    async def cancel(self, ref: str) -> JobDict:
        """Give a job up and remove its checkpoints. A running one ends at its next step boundary.

        Raises:
            JobNotFoundError: No job has that id or name.
            IllegalTransitionError: It is over.
        """
        job = await self._change(ref, job_verbs.cancel)
        if job.state in TERMINAL:
            self._job_over(job)
        return self._view(job)

    async def pause(self, ref: str) -> JobDict:
        """Take a job off its actor, with a checkpoint, and hold it until `resume`.

        Raises:
            JobNotFoundError: No job has that id or name.
            IllegalTransitionError: It is over, or is being cancelled.
        """
        return self._view(await self._change(ref, job_verbs.pause))

    async def resume(self, ref: str) -> JobDict:
        """Put a paused job back into the queue.

        Raises:
            JobNotFoundError: No job has that id or name.
            IllegalTransitionError: It is over, or is being cancelled.
        """
        return self._view(await self._change(ref, job_verbs.resume))

    async def retry(self, ref: str, from_start: bool = False) -> JobDict:
        """Put a failed or cancelled job back into the queue, under its own id.

        Args:
            ref: Its id or name.
            from_start: Use nothing of the old run; else it goes on from its newest checkpoint.

        Raises:
            JobNotFoundError: No job has that id or name.
            IllegalTransitionError: It neither failed nor was cancelled, another job has its name or folder, or what was
                sent for it is removed.
            StorageError: Its files are in a storage that does not answer.
        """
        self._refuse_at_the_end()
        found, checkpoint = self._store.find(ref), None
        if job_verbs.may_retry(self._store, found):
            await asyncio.to_thread(self._uploads.check_there, found)
            checkpoint = await asyncio.to_thread(job_verbs.checkpoint_to_retry, found, from_start=from_start)
        job = await self._change(ref, partial(job_verbs.retry, checkpoint=checkpoint))
        self._rows.accepted(job)
        self._metrics.retried("asked for")
        return self._view(job)

    async def _change(self, ref: str, verb: Callable[[Store, JobRecord], JobRecord]) -> JobRecord:
        """Do what somebody asks of a job; what comes back is in the store."""
        self._refuse_at_the_end()
        job = await self._store.turn(lambda: verb(self._store, self._store.find(ref)))
        self._wake.set()
        return job

    # -- the end -------------------------------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """Stop the actors, which write checkpoints, leave unfinished jobs in the queue, and end."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        await asyncio.shield(self._ending)
        self._leaving = asyncio.get_running_loop().create_task(_leave())

    async def _end(self) -> None:
        if self._door is not None:
            await self._door.close()
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking
        members = await self._fleet.stop()
        await self._store.turn(lambda: self._reconciler.settle(members))
        await asyncio.gather(self._trackers.stop(), self._notices.stop())
        self._store.close()

    def _refuse_at_the_end(self) -> None:
        if self._ending is not None:
            raise ClusterUnavailableError("the orchestrator is being shut down; start it again with `loray serve`")


async def _leave() -> None:
    """End this actor for good, a moment after its last answer has left."""
    await asyncio.sleep(0.2)
    ray.kill(ray.get_actor(CONTROLLER, namespace=NAMESPACE), no_restart=True)
