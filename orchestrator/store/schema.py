"""Bringing the tables of a database up to date, by the steps in `migrations`.

Alembic keeps the name of the latest step in the table `alembic_version`. All steps of an opening are one transaction:
who is cut off in between finds the database as it was.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from orchestrator.store import tables

_FOLDER = str(Path(__file__).parent / "migrations")
_BEFORE_MIGRATIONS = 4  # the version by which databases with migrations are known to a Loray without


def upgrade(connection: sa.Connection) -> str | None:
    """Take the steps that a database has not seen.

    Args:
        connection: In no transaction yet; the caller commits.

    Returns:
        What a newer Loray wrote there, in words; the database is then left as it is. None: it is up to date.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins none for a change of tables
    steps = ScriptDirectory(_FOLDER, version_locations=[_FOLDER])
    context = MigrationContext.configure(connection)
    seen = context.get_current_heads()
    known = {step.revision for step in steps.walk_revisions()}
    strange = [name for name in seen if name not in known]
    old = _version_before_migrations(connection)
    if strange or old > _BEFORE_MIGRATIONS:
        return f"has schema {', '.join(strange) or old}, this Loray knows up to {steps.get_current_head()}"
    missing = [step for step in steps.walk_revisions() if step.revision not in _with_ancestors(steps, seen)]
    for step in reversed(missing):
        with Operations.context(context):
            step.module.upgrade()
    if missing:
        context.stamp(steps, "heads")
    return None


def _with_ancestors(steps: ScriptDirectory, seen: tuple[str, ...]) -> set[str]:
    """The steps that a database with these latest ones has seen."""
    return {step.revision for name in seen for step in steps.iterate_revisions(name, "base")}


def _version_before_migrations(connection: sa.Connection) -> int:
    """What the table of versions says that came before alembic's; 0 where there is none."""
    if not sa.inspect(connection).has_table(tables.versions.name):
        return 0
    return connection.scalar(sa.select(sa.func.max(tables.versions.c.version))) or 0
