"""Lease tokens: proof that a task was handed to a user, checked without a table."""

from __future__ import annotations

import hmac

from annotate.assignment import keyed_digest
from annotate.store.engine import StoreBase
from annotate.store.errors import LeaseError


class LeaseStore(StoreBase):
    """The part of a store that makes and checks lease tokens."""

    def _lease_token(self, user_id: int, assignment_id: int, attempt: int) -> str:
        mac = keyed_digest(self._secret, "lease", user_id, assignment_id, attempt).hex()[:32]
        return f"{attempt}.{mac}"

    def _check_lease_token(self, user_id: int, assignment_id: int, token: str) -> int:
        """The attempt that the token was made for; LeaseError when it was not made here."""
        attempt, _, _ = token.partition(".")
        if attempt.isascii() and attempt.isdigit():
            expected = self._lease_token(user_id, assignment_id, int(attempt))
            if hmac.compare_digest(token.encode(), expected.encode()):
                return int(attempt)
        raise LeaseError(
            f"this lease token was not given to this user for task {assignment_id}",
            code="lease_forged",
        )
