"""The durable job table: what was accepted stays accepted, whatever dies.

Every method is one transaction, or a part of its caller's `turn`. One orchestrator at a time writes to a store;
`orchestrator.control.controller` sees to that.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gpu_actor.contract.errors import JobNotFoundError
from orchestrator.jobs.job import ACCEPTED, JobSpec
from orchestrator.jobs.losses import Losses
from orchestrator.jobs.owner import OPERATOR
from orchestrator.jobs.states import TERMINAL, JobState, check_transition
from orchestrator.store import event_table, statements, stay_table, tables, token_table
from orchestrator.store.database import open_database
from orchestrator.store.errors import LiveJobError
from orchestrator.store.live_jobs import LIVE, LiveJobs
from orchestrator.store.profile_table import read_profiles, write_profiles
from orchestrator.store.records import ActorRecord, JobRecord, OwnedStay, Stay, TokenRecord, Wish
from orchestrator.store.transactions import Transactions

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_CHUNK = 500  # names in one IN (...)

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class Store:
    """The job table behind one URL."""

    def __init__(self, url: str) -> None:
        """Open the table, and make it if it is not there.

        Raises:
            StoreError: The database cannot be opened, or a newer Loray wrote it.
        """
        self._engine = open_database(url)
        self._last_ms = 0
        self._specs: dict[str, JobSpec] = {}  # a job's spec never changes, and reading it is slow
        self._live = LiveJobs(self._read_live)
        self._transactions = Transactions(self._engine, self._forget_live)

    def _forget_live(self) -> None:
        self._live = LiveJobs(self._read_live)

    async def turn(self, work: Callable[[], _Result]) -> _Result:
        """Do some work with this store in one transaction; see `Transactions.turn`, and use it in an event loop."""
        return await self._transactions.turn(work)

    def afterwards(self, call: Callable[[], object]) -> None:
        """Do something once all that was written so far is safe."""
        self._transactions.afterwards(call)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # -- submitting ----------------------------------------------------------------------------------------------

    def request(self, request_id: str) -> list[JobRecord] | None:
        """The jobs that a request was answered with, or None if it is new."""
        with self._transactions.read() as connection:
            ids = connection.scalar(statements.request, {"request_id": request_id})
        return None if ids is None else [self.get(job_id) for job_id in ids]

    def live_conflicts(self, specs: Sequence[JobSpec]) -> list[LiveJobError]:
        """Which jobs have the name or the output folder of a live job."""
        with self._transactions.read() as connection:
            return self._conflicts(connection, specs)

    def newer_in_folder(self, job: JobRecord) -> JobRecord | None:
        """The newest of the jobs that came after a job and have its output folder, whatever their state."""
        found = self._read(tables.jobs.c.output_dir == job.output_dir, tables.jobs.c.seq > job.seq)
        return found[-1] if found else None

    def _conflicts(
        self, connection: Connection, specs: Sequence[JobSpec], leave_out: str | None = None
    ) -> list[LiveJobError]:
        conflicts = []
        for field in ("name", "output_dir"):
            wanted = [getattr(spec, field) for spec in specs]
            taken: dict[str, Any] = {}
            for some in _chunks(wanted):
                values = {"wanted": some, statements.JOB: leave_out or ""}
                taken |= {row[0]: row for row in connection.execute(statements.taken[field], values)}
            for spec in specs:
                row = taken.get(getattr(spec, field))
                if row is not None:
                    conflicts.append(LiveJobError(spec.name, field, _conflict(field, row)))
        return conflicts

    def add(self, specs: Sequence[JobSpec], request_id: str, owner: str = OPERATOR) -> list[JobRecord]:
        """Accept jobs, all or none. A request that was accepted before returns its jobs as they are now.

        Raises:
            LiveJobError: A live job has that name or output folder.
        """
        earlier = self.request(request_id)
        if earlier is not None:
            return earlier
        now = time.time()
        ids = [self._new_id() for _ in specs]
        with self._transactions.write() as connection:
            conflicts = self._conflicts(connection, specs)
            if conflicts:
                raise conflicts[0]
            for job_id, spec in zip(ids, specs, strict=True):
                row = {**_new_row(job_id, spec, request_id, now), "owner": owner}
                connection.execute(statements.add_job, row)
                self._live.touch(job_id)
                self._log(connection, job_id, "accepted")
            connection.execute(statements.add_request, {"request_id": request_id, "job_ids": ids})
        return [self.get(job_id) for job_id in ids]

    def _new_id(self) -> str:
        """Short, sortable by time (9 digits count milliseconds), unique (15 random bits)."""
        self._last_ms = max(int(time.time() * 1000), self._last_ms + 1)
        number = self._last_ms << 15 | secrets.randbits(15)
        digits = []
        for _ in range(12):
            number, digit = divmod(number, 32)
            digits.append(_DIGITS[digit])
        return "".join(reversed(digits))

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> JobRecord:
        """One job by its id.

        Raises:
            JobNotFoundError: No job has that id.
        """
        with self._transactions.read() as connection:
            return self._get(connection, job_id)

    def find(self, ref: str, owner: str | None = None) -> JobRecord:
        """One job by its id or its name (the newest of that name).

        Args:
            ref: Its id or name.
            owner: Whose jobs come before all others of that name.

        Raises:
            JobNotFoundError: No job has that id or name.
        """
        by_id = sa.case((tables.jobs.c.id == ref, 0), (tables.jobs.c.owner == owner, 1), else_=2)
        query = sa.select(tables.jobs.c.id).where(sa.or_(tables.jobs.c.id == ref, tables.jobs.c.name == ref))
        with self._transactions.read() as connection:
            job_id = connection.scalar(query.order_by(by_id, tables.jobs.c.seq.desc()).limit(1))
            if job_id is None:
                raise JobNotFoundError(f"no job has the id or name {ref!r}; `loray list` shows all")
            return self._get(connection, job_id)

    def jobs(self, states: Iterable[JobState] | None = None, requests: Iterable[str] | None = None) -> list[JobRecord]:
        """Jobs in the order of arrival; all, or those in some states, or of some requests."""
        wanted = None if states is None else frozenset(states)
        if wanted is not None and wanted <= LIVE and requests is None:
            return self._live.of(wanted)
        where = []
        if wanted is not None:
            where.append(tables.jobs.c.state.in_([state.value for state in wanted]))
        if requests is not None:
            where.append(tables.jobs.c.request_id.in_(list(requests)))
        return self._read(*where)

    def jobs_of(self, owner: str | None, most_over: int | None) -> list[JobRecord]:
        """Jobs in the order of arrival.

        Args:
            owner: Whose; None: everybody's.
            most_over: Of those that are over only so many, the newest; None: all.
        """
        if most_over == 0:
            return [job for job in self._live.of(LIVE) if owner in (None, job.owner)]
        whose = sa.true() if owner is None else tables.jobs.c.owner == owner
        if most_over is None:
            return self._read(whose)
        over = sa.select(tables.jobs.c.seq).where(whose, sa.not_(tables.is_live))
        newest = over.order_by(tables.jobs.c.seq.desc()).limit(most_over).subquery()
        return self._read(whose, tables.is_live | tables.jobs.c.seq.in_(sa.select(newest.c.seq)))

    def _read(self, *where: sa.ColumnElement[bool]) -> list[JobRecord]:
        with self._transactions.read() as connection:
            query = sa.select(*statements.COLUMNS).where(*where).order_by(tables.jobs.c.seq)
            return self._records(connection, connection.execute(query).all())

    def _read_live(self, ids: Collection[str] | None) -> list[JobRecord]:
        with self._transactions.read() as connection:
            if ids is None:
                return self._records(connection, connection.execute(statements.live_jobs).all())
            found: list[JobRecord] = []
            for some in _chunks(list(ids)):
                found += self._records(connection, connection.execute(statements.jobs, {"ids": some}).all())
            return found

    def _records(self, connection: Connection, rows: Sequence[sa.Row[Any]]) -> list[JobRecord]:
        for some in _chunks([row.id for row in rows if row.id not in self._specs]):
            for job_id, spec in connection.execute(statements.specs, {"ids": some}):
                self._specs[job_id] = JobSpec.model_validate(spec, context=ACCEPTED)
        return [self._record(row) for row in rows]

    def counts(self) -> dict[JobState, int]:
        """Number of jobs by state, every state included."""
        with self._transactions.read() as connection:
            counts = {row[0]: row[1] for row in connection.execute(statements.counts)}
        return {state: counts.get(state.value, 0) for state in JobState}

    def note(self, job_id: str, message: str) -> None:
        """Add an event to a job's story; its state stays."""
        with self._transactions.write() as connection:
            self._log(connection, job_id, message)

    def events(self, job_id: str, after: int = 0) -> list[dict[str, Any]]:
        """What happened to a job, oldest first: `seq`, `time`, `message` of each event after number `after`."""
        with self._transactions.read() as connection:
            return event_table.read_events(connection, job_id, after)

    def recent_events(self, most: int, owner: str | None = None) -> list[dict[str, Any]]:
        """The latest events of all jobs, or of an owner's, oldest first, each with its job's `job_id` and `name`."""
        with self._transactions.read() as connection:
            return event_table.recent_events(connection, most, owner)

    def stays(self) -> list[Stay]:
        """Who was where when, in the order of the assignments."""
        with self._transactions.read() as connection:
            return stay_table.read_stays(connection)

    def owned_stays(self, after: float) -> list[OwnedStay]:
        """Whose jobs were where when; the stays that were not over then (Unix time)."""
        with self._transactions.read() as connection:
            return stay_table.owned_stays(connection, after)

    def assigned_at(self, job_id: str) -> float:
        """When a running job was given to its actor (Unix time)."""
        with self._transactions.read() as connection:
            return float(connection.scalar(statements.latest_stay, {statements.JOB: job_id}) or time.time())

    # -- changing ------------------------------------------------------------------------------------------------

    def move(self, job_id: str, state: JobState, message: str, **changes: Any) -> JobRecord:
        """Bring a job into another state, with its event.

        Args:
            job_id: Which job.
            state: The new state; wish and waiting reason of the old one end with it.
            message: The event, in words.
            **changes: Further columns.

        Raises:
            IllegalTransitionError: The job cannot go there from where it is.
            LiveJobError: It would come back to life beside a live job of its name or output folder.
        """
        now = time.time()
        defaults: dict[str, Any] = {"wish": None, "waiting_for": None}
        if state is JobState.QUEUED:
            defaults |= {"queued_at": now, "finished_at": None}
        if state is not JobState.RUNNING:
            defaults |= {"actor": None, "boot_id": None}
        if state in TERMINAL:
            defaults["finished_at"] = now
        with self._transactions.write() as connection:
            job = self._get(connection, job_id)
            check_transition(job.state, state)
            if job.state in TERMINAL:
                conflicts = self._conflicts(connection, [job.spec], leave_out=job_id)
                if conflicts:
                    raise conflicts[0]
            self._set(connection, job_id, {**defaults, **changes, "state": state.value})
            if job.state is JobState.RUNNING:
                connection.execute(statements.end_stay, {"job": job_id, "end": now})
            self._log(connection, job_id, message)
            return self._get(connection, job_id)

    def assign(self, job_id: str, actor: str, boot_id: str) -> JobRecord | None:
        """Give a queued job to an actor under a new attempt number; None if it is not queued any more."""
        with self._transactions.write() as connection:
            job = self._get(connection, job_id)
            if job.state is not JobState.QUEUED:
                return None
            changes = {
                "state": JobState.RUNNING.value,
                "attempt": job.attempt + 1,
                "actor": actor,
                "boot_id": boot_id,
                "waiting_for": None,
                "started_at": job.started_at or time.time(),
            }
            self._set(connection, job_id, changes)
            connection.execute(statements.add_stay, {"job_id": job_id, "actor": actor, "since": time.time()})
            self._log(connection, job_id, f"assigned to {actor} (attempt {job.attempt + 1})")
            return self._get(connection, job_id)

    def wish(self, job_id: str, wish: Wish | None, message: str, **changes: Any) -> JobRecord:
        """Note what a person or the scheduler wants of a running job, with its event; optionally further columns."""
        with self._transactions.write() as connection:
            self._set(connection, job_id, {"wish": wish.value if wish else None, **changes})
            self._log(connection, job_id, message)
            return self._get(connection, job_id)

    def set_losses(self, job_id: str, losses: Losses, message: str) -> None:
        """Write what lost actors say of a job, with an event."""
        with self._transactions.write() as connection:
            self._set(connection, job_id, {"losses": losses.row()})
            self._log(connection, job_id, message)

    def set_progress(self, progress: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the progress of several jobs."""
        self._set_all("progress", {job_id: dict(values) for job_id, values in progress.items()})

    def set_waiting(self, reasons: Mapping[str, str]) -> None:
        """Write why several jobs wait."""
        self._set_all("waiting_for", reasons)

    def _set_all(self, column: str, values: Mapping[str, Any]) -> None:
        """One column of many jobs, at one go."""
        if not values:
            return
        for job_id in values:
            self._live.touch(job_id)
        rows = [{statements.JOB: job_id, column: value} for job_id, value in values.items()]
        with self._transactions.write() as connection:
            connection.execute(statements.change_job, rows)

    # -- actors --------------------------------------------------------------------------------------------------

    def actors(self) -> list[ActorRecord]:
        """The actors that were started and not removed."""
        with self._transactions.read() as connection:
            rows = connection.execute(sa.select(tables.actors).order_by(tables.actors.c.name))
            return [ActorRecord(**row._mapping) for row in rows]

    def add_actor(self, actor: ActorRecord) -> None:
        """Note an actor that is about to be started."""
        with self._transactions.write() as connection:
            values = {"name": actor.name, "slot": actor.slot, "base_model": actor.base_model}
            connection.execute(tables.actors.insert().values(**values))

    def remove_actor(self, name: str) -> None:
        """Forget an actor that is gone."""
        with self._transactions.write() as connection:
            connection.execute(tables.actors.delete().where(tables.actors.c.name == name))

    # -- profiles ------------------------------------------------------------------------------------------------

    def profiles(self) -> dict[str, dict[str, Any]]:
        """What was learned of devices, by key."""
        with self._transactions.read() as connection:
            return read_profiles(connection)

    def save_profiles(self, profiles: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what was learned of some devices."""
        with self._transactions.write() as connection:
            write_profiles(connection, profiles)

    # -- tokens --------------------------------------------------------------------------------------------------

    def tokens(self) -> list[TokenRecord]:
        """Who has a token."""
        with self._transactions.read() as connection:
            return token_table.read_tokens(connection)

    def add_token(self, owner: str, digest: str) -> None:
        """Note a token; see `token_table.add_token`."""
        with self._transactions.write() as connection:
            token_table.add_token(connection, owner, digest)

    def remove_token(self, owner: str) -> None:
        """Take a token back; see `token_table.remove_token`."""
        with self._transactions.write() as connection:
            token_table.remove_token(connection, owner)

    def _record(self, row: sa.Row[Any]) -> JobRecord:
        wish = Wish(row.wish) if row.wish else None
        known = {"state": JobState(row.state), "wish": wish, "losses": Losses.of_row(row.losses)}
        return JobRecord(**{**row._mapping, **known, "spec": self._specs[row.id]})

    # -- inside a transaction ------------------------------------------------------------------------------------

    def _get(self, connection: Connection, job_id: str) -> JobRecord:
        found = self._records(connection, connection.execute(statements.job, {statements.JOB: job_id}).all())
        if not found:
            raise JobNotFoundError(f"no job has the id {job_id!r}; `loray list` shows all")
        return found[0]

    def _set(self, connection: Connection, job_id: str, changes: Mapping[str, Any]) -> None:
        self._live.touch(job_id)
        connection.execute(statements.change_job, {statements.JOB: job_id, **changes})

    @staticmethod
    def _log(connection: Connection, job_id: str, message: str) -> None:
        connection.execute(statements.add_event, {"job_id": job_id, "time": time.time(), "message": message})


def _chunks(some: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(some), _CHUNK):
        yield some[start : start + _CHUNK]


def _new_row(job_id: str, spec: JobSpec, request_id: str, now: float) -> dict[str, Any]:
    return {
        "id": job_id,
        "name": spec.name,
        "state": JobState.QUEUED.value,
        "spec": spec.model_dump(mode="json"),
        "progress": {},
        "waiting_for": "the next look at the cluster",
        "output_dir": spec.output_dir,
        "submitted_at": now,
        "queued_at": now,
        "request_id": request_id,
    }


def _conflict(field: str, row: Any) -> str:
    _, name, job_id, state = row
    if field == "name":
        return f"{name!r} is the name of a live job ({job_id}, {state}); choose another name, or cancel that job"
    return f"the output folder belongs to the live job {name!r} ({job_id}, {state}); choose another folder"
