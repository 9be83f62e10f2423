"""The preference store: every query and transaction of the project, on SQLite or PostgreSQL.

    with PreferenceStore.open("studio") as store:
        claim = store.claim(user.id)
        store.submit(user.id, Submission(...))

Each part of the class is a module of its own: accounts (`users`), what is judged (`content`,
`tasks`), annotators' work (`work`), images (`media`), and what comes out (`results`).
"""

from annotate.store.content import ContentStore
from annotate.store.errors import (
    ConflictError,
    LeaseError,
    NotFoundError,
    StoreAccessError,
    StoreError,
)
from annotate.store.models import (
    Answer,
    Claim,
    Progress,
    SnapshotEntry,
    StoredPick,
    StoreStatus,
    Submission,
    User,
)
from annotate.store.tasks import TaskStore
from annotate.store.users import UserStore
from annotate.store.work import WorkStore

__all__ = [
    "Answer",
    "Claim",
    "ConflictError",
    "LeaseError",
    "NotFoundError",
    "PreferenceStore",
    "Progress",
    "SnapshotEntry",
    "StoreAccessError",
    "StoreError",
    "StoreStatus",
    "StoredPick",
    "Submission",
    "User",
]


class PreferenceStore(UserStore, ContentStore, TaskStore, WorkStore):
    """An open preference store; make one with `PreferenceStore.open`."""
