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

from annotate.schema import (
    Candidate,
    Generation,
    Outcome,
    Pick,
    PreferencePair,
    Prompt,
    Question,
    Record,
    Run,
    Split,
    Task,
)

__all__ = [
    "Candidate",
    "Generation",
    "Outcome",
    "Pick",
    "PreferencePair",
    "Prompt",
    "Question",
    "Record",
    "Run",
    "Split",
    "Task",
]
