"""`jobs.owner`, and the table `tokens`: whose a job is, and who comes in by the HTTP door."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """The jobs that are there are the operator's."""
    op.add_column("jobs", sa.Column("owner", sa.String(64), nullable=False, server_default="operator"))
    op.create_table(
        "tokens",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
