"""The steps from one form of the tables to the next, a file each; `orchestrator.store.schema` takes them by alembic."""
