"""Lease tokens: proof that a task was handed to a user, checked without a table."""

from __future__ import annotations

import hmac

from annotate.assignment import keyed_digest, scramble, unscramble
from annotate.store.engine import StoreBase
from annotate.store.errors import LeaseError


class LeaseStore(StoreBase):
    """The part of a store that makes and checks lease tokens."""

    def public_number(self, assignment_id: int) -> int:
        """The number by which a browser knows an assignment.

        A check's slot is made when it is handed out: its own, newest number would tell it.
        """
        return scramble(self._secret, assignment_id)

    def assignment_of(self, number: int) -> int:
        """The assignment of a `public_number`; LeaseError for a number that can be none."""
        if not 0 <= number < 1 << 40:
            raise LeaseError(f"there is no task {number}", code="lease_forged")
        return unscramble(self._secret, number)

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
