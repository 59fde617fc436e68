"""The tables of the job store, as the latest of the `migrations` leaves them."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.jobs.owner import OPERATOR
from orchestrator.jobs.states import TERMINAL, JobState

_LIVE = sorted(state.value for state in JobState if state not in TERMINAL)

metadata = sa.MetaData()
versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("name", sa.String(128), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("retries", sa.Integer, nullable=False, default=0),
    sa.Column("wish", sa.String(16)),
    sa.Column("actor", sa.String(256)),
    sa.Column("boot_id", sa.String(64)),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("waiting_for", sa.Text),
    sa.Column("output_dir", sa.Text, nullable=False),
    sa.Column("submitted_at", sa.Double, nullable=False),
    sa.Column("queued_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("losses", sa.JSON(none_as_null=True)),
    sa.Column("owner", sa.String(64), nullable=False, server_default=OPERATOR),
    sqlite_autoincrement=True,
)
is_live = jobs.c.state.in_(_LIVE)
for _column in (jobs.c.name, jobs.c.output_dir):
    sa.Index(f"live_{_column.name}", _column, unique=True, sqlite_where=is_live, postgresql_where=is_live)
events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(32), nullable=False, index=True),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
stays = sa.Table(  # who was where when: one row for each assignment of a job to an actor
    "stays",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(32), nullable=False, index=True),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("until", sa.Double),
    sqlite_autoincrement=True,
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("job_ids", sa.JSON, nullable=False),
)
actors = sa.Table(
    "actors",
    metadata,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("slot", sa.String(128), nullable=False),
    sa.Column("base_model", sa.Text, nullable=False),
)
profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("key", sa.String(512), primary_key=True),
    sa.Column("values", sa.JSON, nullable=False),
)
tokens = sa.Table(  # a hash each: who reads the table gets no token from it
    "tokens",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
