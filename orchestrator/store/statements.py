"""The statements that every tick executes, built once: to build one anew takes five times as long as to execute it."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.store import tables

JOB = "job_id"  # names the id in all of these
COLUMNS = [column for column in tables.jobs.c if column.name != "spec"]  # to read 10,000 specs takes seconds

_is_it = tables.jobs.c.id == sa.bindparam(JOB)
_is_among = tables.jobs.c.id.in_(sa.bindparam("ids", expanding=True))

job = sa.select(*COLUMNS).where(_is_it)
jobs = sa.select(*COLUMNS).where(_is_among).order_by(tables.jobs.c.seq)
live_jobs = sa.select(*COLUMNS).where(tables.is_live).order_by(tables.jobs.c.seq)
specs = sa.select(tables.jobs.c.id, tables.jobs.c.spec).where(_is_among)
add_job = tables.jobs.insert()
change_job = tables.jobs.update().where(_is_it)  # the other parameters are the columns
add_event = tables.events.insert()
add_stay = tables.stays.insert()
end_stay = (
    tables.stays.update()
    .where(tables.stays.c.job_id == sa.bindparam("job"), tables.stays.c.until.is_(None))
    .values(until=sa.bindparam("end"))
)
latest_stay = sa.select(sa.func.max(tables.stays.c.since)).where(tables.stays.c.job_id == sa.bindparam(JOB))
request = sa.select(tables.requests.c.job_ids).where(tables.requests.c.request_id == sa.bindparam("request_id"))
add_request = tables.requests.insert()
counts = sa.select(tables.jobs.c.state, sa.func.count()).group_by(tables.jobs.c.state)
taken = {  # live jobs that have one of some names, or of some output folders
    field: sa.select(column, tables.jobs.c.name, tables.jobs.c.id, tables.jobs.c.state).where(
        tables.is_live, column.in_(sa.bindparam("wanted", expanding=True)), tables.jobs.c.id != sa.bindparam(JOB)
    )
    for field, column in (("name", tables.jobs.c.name), ("output_dir", tables.jobs.c.output_dir))
}
