"""The preference store: every query and transaction of the project, on SQLite or PostgreSQL.

    with PreferenceStore.open("studio") as store:
        claim = store.claim(user.id)
        store.submit(user.id, Submission(...))

Each part of the class is a module of its own: accounts (`users`), what is judged (`content`,
`tasks`, `guidelines`), annotators' work (`work`, `queue`, `slots`, `leases`, `details`, `history`)
and the checks on it (`policy`, `checks`, `quality`, `reviews`,
`throughput`), images (`media`), what comes out
(`results`), and the trail of it all (`audit`).
"""

from annotate.store.audit import AuditEvent, AuditStore
from annotate.store.backup import BackupStore
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
from annotate.store.policy import PolicyStore, WorkPolicy
from annotate.store.quality import Judged, QualityStore
from annotate.store.reviews import Dispute, ReviewStore, Verdict
from annotate.store.tasks import TaskStore
from annotate.store.throughput import ThroughputStore
from annotate.store.users import UserStore

__all__ = [
    "Answer",
    "AuditEvent",
    "Claim",
    "ConflictError",
    "Dispute",
    "Guideline",
    "GuidelineVersion",
    "Judged",
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
    "Verdict",
    "WorkPolicy",
]


class PreferenceStore(
    UserStore,
    ContentStore,
    TaskStore,
    GuidelineStore,
    HistoryStore,
    QualityStore,
    ReviewStore,
    ThroughputStore,
    PolicyStore,
    AuditStore,
    BackupStore,
):
    """An open preference store; make one with `PreferenceStore.open`."""
