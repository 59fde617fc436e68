"""Whose token is whose, as rows of the store: names, and hashes from which nobody gets a token back."""

from __future__ import annotations

import time

import sqlalchemy as sa

from orchestrator.jobs.owner import OwnerError
from orchestrator.store import tables
from orchestrator.store.records import TokenRecord


def read_tokens(connection: sa.Connection) -> list[TokenRecord]:
    """Every token, by name."""
    rows = connection.execute(sa.select(tables.tokens).order_by(tables.tokens.c.owner))
    return [TokenRecord(**row._mapping) for row in rows]


def add_token(connection: sa.Connection, owner: str, digest: str) -> None:
    """Note a token; the same one again changes nothing.

    Raises:
        OwnerError: The owner has another one.
    """
    known = connection.scalar(sa.select(tables.tokens.c.digest).where(tables.tokens.c.owner == owner))
    if known is None:
        connection.execute(tables.tokens.insert().values(owner=owner, digest=digest, created_at=time.time()))
    elif known != digest:
        raise OwnerError(f"{owner} has a token already; `loray token revoke {owner}` takes it back, then add another")


def remove_token(connection: sa.Connection, owner: str) -> None:
    """Take a token back.

    Raises:
        OwnerError: The owner has none.
    """
    if not connection.execute(tables.tokens.delete().where(tables.tokens.c.owner == owner)).rowcount:
        raise OwnerError(f"{owner} has no token; `loray token list` shows who has one")
