"""What happened to which job when, as rows of the store."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from orchestrator.store import tables

_LOOKED_THROUGH = 10_000  # of the latest events, for those of one owner
_EVENTS, _JOBS = tables.events.c, tables.jobs.c


def read_events(connection: sa.Connection, job_id: str, after: int) -> list[dict[str, Any]]:
    """The events of a job after number `after`, oldest first: `seq`, `time`, `message`."""
    query = sa.select(_EVENTS.seq, _EVENTS.time, _EVENTS.message).where(_EVENTS.job_id == job_id, _EVENTS.seq > after)
    return [dict(row._mapping) for row in connection.execute(query.order_by(_EVENTS.seq))]


def recent_events(connection: sa.Connection, most: int, owner: str | None) -> list[dict[str, Any]]:
    """The latest events of all jobs, or of an owner's, oldest first: `seq`, `time`, `job_id`, `name`, `message`."""
    newest = sa.select(sa.func.max(_EVENTS.seq)).scalar_subquery()
    query = (
        sa.select(_EVENTS.seq, _EVENTS.time, _EVENTS.job_id, _JOBS.name, _EVENTS.message)
        .join_from(tables.events, tables.jobs, _EVENTS.job_id == _JOBS.id)
        .where(_EVENTS.seq > newest - _LOOKED_THROUGH, *([] if owner is None else [_JOBS.owner == owner]))
        .order_by(_EVENTS.seq.desc())
        .limit(most)
    )
    return [dict(row._mapping) for row in connection.execute(query)][::-1]
