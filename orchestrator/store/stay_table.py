"""Who was where when, as rows of the store."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.store import tables
from orchestrator.store.records import OwnedStay, Stay

_STAYS = tables.stays.c


def read_stays(connection: sa.Connection) -> list[Stay]:
    """All of them, in the order of the assignments."""
    query = sa.select(_STAYS.job_id, _STAYS.actor, _STAYS.since, _STAYS.until).order_by(_STAYS.seq)
    return [Stay(**row._mapping) for row in connection.execute(query)]


def owned_stays(connection: sa.Connection, after: float) -> list[OwnedStay]:
    """Those that were not over then (Unix time), and whose jobs' they are."""
    query = (
        sa.select(tables.jobs.c.owner, _STAYS.actor, _STAYS.since, _STAYS.until)
        .join_from(tables.stays, tables.jobs, _STAYS.job_id == tables.jobs.c.id)
        .where(sa.or_(_STAYS.until.is_(None), _STAYS.until > after))
    )
    return [OwnedStay(**row._mapping) for row in connection.execute(query)]
