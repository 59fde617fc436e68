"""`jobs.losses`: the actors that a job has lost in a row (`orchestrator.jobs.losses`)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Nothing is held against the jobs that are there. A Loray from before migrations refuses the database now."""
    op.add_column("jobs", sa.Column("losses", sa.JSON))
    op.execute("DELETE FROM schema_version")
    op.execute("INSERT INTO schema_version (version) VALUES (4)")
