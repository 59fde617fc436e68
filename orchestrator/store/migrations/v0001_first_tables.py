"""The tables as they were before there were migrations: made where they are missing, left alone where they are not.

Of the versions that the table `schema_version` knows, 2 added `profiles` and 3 added `stays`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None
_LIVE = ["PAUSED", "QUEUED", "RUNNING"]


def upgrade() -> None:
    """Make what is missing."""
    _tables().create_all(op.get_bind())


def _tables() -> sa.MetaData:
    """As they were: what has become of them since is in the later steps and in `orchestrator.store.tables`."""
    metadata = sa.MetaData()
    sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))
    jobs = sa.Table(
        "jobs",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("name", sa.String(128), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("retries", sa.Integer, nullable=False),
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
        sqlite_autoincrement=True,
    )
    is_live = jobs.c.state.in_(_LIVE)
    for column in (jobs.c.name, jobs.c.output_dir):
        sa.Index(f"live_{column.name}", column, unique=True, sqlite_where=is_live, postgresql_where=is_live)
    sa.Table(
        "events",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(32), nullable=False, index=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    sa.Table(
        "stays",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(32), nullable=False, index=True),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("until", sa.Double),
        sqlite_autoincrement=True,
    )
    sa.Table(
        "requests",
        metadata,
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("job_ids", sa.JSON, nullable=False),
    )
    sa.Table(
        "actors",
        metadata,
        sa.Column("name", sa.String(256), primary_key=True),
        sa.Column("slot", sa.String(128), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
    )
    sa.Table(
        "profiles",
        metadata,
        sa.Column("key", sa.String(512), primary_key=True),
        sa.Column("values", sa.JSON, nullable=False),
    )
    return metadata
