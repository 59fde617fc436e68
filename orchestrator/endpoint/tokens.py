"""Who comes in: tokens, of which only hashes are kept, and the names of those whom they were given to."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.jobs.owner import OPERATOR

_PREFIX = "loray_"


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    name: str

    @property
    def is_operator(self) -> bool:
        """Whether nothing is barred to them."""
        return self.name == OPERATOR

    def owns(self, owner: str) -> bool:
        """Whether what belongs to an owner is theirs to steer and to read."""
        return self.is_operator or self.name == owner


def new_token() -> str:
    """A token that nobody can guess: 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What is kept of a token. It needs no salt and no slow hash: nobody can try 2^256 of them."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class TokenBook:
    """The hashes of all tokens.

    Attributes:
        given: Hash by name of the owner, as in the job table.
    """

    def __init__(self, operator_token: str) -> None:
        """Only the operator has a token.

        Args:
            operator_token: Of this orchestrator; it is in no table.
        """
        self._operator = digest_of(operator_token)
        self.given: Mapping[str, str] = {}

    def caller(self, token: str) -> Caller | None:
        """Who has a token; None: nobody. It takes the same time whatever the token."""
        digest, found = digest_of(token), None
        for owner, known in ((OPERATOR, self._operator), *self.given.items()):
            if hmac.compare_digest(digest, known):
                found = Caller(owner)
        return found
