"""What other packages may import from ``annotate``: the records of a snapshot and its reader.

It needs pydantic alone: a training node reads a snapshot without a database driver. A snapshot
is a folder::

    snapshot.json       manifest: digest, counts, hash of each file
    prompts.jsonl       one `Prompt` a line, sorted by id
    candidates.jsonl    one `Candidate` a line, sorted by id
    tasks.jsonl         one `Task` a line, sorted by id
    picks.jsonl         one `Pick` a line, sorted by id
    images/             <sha256>.png, when cut ``with_images``
"""

from annotate.pairs import PAIR_POLICIES, derive_pairs, derive_rankings
from annotate.schema import (
    Candidate,
    Criterion,
    Generation,
    Mark,
    Outcome,
    Pick,
    PreferencePair,
    Prompt,
    Question,
    Ranking,
    Reason,
    Record,
    Region,
    Run,
    Split,
    Task,
    faults,
    language,
)
from annotate.shares import win_rate
from annotate.snapshot import Snapshot, SnapshotError, load_snapshot

__all__ = [
    "PAIR_POLICIES",
    "Candidate",
    "Criterion",
    "Generation",
    "Mark",
    "Outcome",
    "Pick",
    "PreferencePair",
    "Prompt",
    "Question",
    "Ranking",
    "Reason",
    "Record",
    "Region",
    "Run",
    "Snapshot",
    "SnapshotError",
    "Split",
    "Task",
    "derive_pairs",
    "derive_rankings",
    "faults",
    "language",
    "load_snapshot",
    "win_rate",
]
