"""The preference store: every query and transaction of the project, on SQLite or PostgreSQL.

    with PreferenceStore.open("studio") as store:
        claim = store.claim(user.id)
        store.submit(user.id, Submission(...))

Each part of the class is a module of its own: accounts (`users`), what is judged (`content`,
`tasks`, `guidelines`), annotators' work (`work`, `leases`, `details`, `history`), images (`media`),
and what comes out (`results`).
"""

from annotate.store.content import ContentStore
from annotate.store.errors import (
    ConflictError,
    LeaseError,
    NotFoundError,
    StoreAccessError,
    StoreError,
)
from annotate.store.guidelines import GuidelineStore
from annotate.store.history import HistoryStore
from annotate.store.models import (
    Answer,
    Claim,
    Guideline,
    GuidelineVersion,
    Progress,
    SnapshotEntry,
    StoredPick,
    StoreStatus,
    Submission,
    User,
)
from annotate.store.tasks import TaskStore
from annotate.store.users import UserStore

__all__ = [
    "Answer",
    "Claim",
    "ConflictError",
    "Guideline",
    "GuidelineVersion",
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


class PreferenceStore(UserStore, ContentStore, TaskStore, GuidelineStore, HistoryStore):
    """An open preference store; make one with `PreferenceStore.open`."""
