"""What can go wrong with a store, told apart so that a web route can answer each."""

from __future__ import annotations


class StoreError(ValueError):
    """A request that the store refuses; the message says why and what would be right.

    ``code`` names the refusals that people meet while they label, so that a page can say them in
    their language: ``error.<code>`` of the catalogues. ``value`` is the ``{value}`` in that text.
    """

    def __init__(self, message: str, code: str = "", value: object = ""):
        super().__init__(message)
        self.code = code
        self.value = value


class NotFoundError(StoreError):
    """The named row does not exist."""


class ConflictError(StoreError):
    """The request contradicts what is stored already (HTTP 409)."""


class LeaseError(StoreError):
    """A lease token that this store never issued to this user, or a lease that is gone."""


class StoreAccessError(OSError):
    """The database or its folder cannot be read or written.

    ``code`` is ``busy`` where another program holds the database, else ``storage``.
    """

    def __init__(self, message: str, code: str = "storage"):
        super().__init__(message)
        self.code = code
