"""What the tables of a database lack, or have too much, by the definitions that the store works with."""

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from orchestrator.store import tables


def differences(url):
    """Alembic's own comparison; empty where there is none."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        metadata = sa.MetaData()
        for table in tables.metadata.tables.values():
            table.to_metadata(metadata)
        sa.Table("alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True))
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
