"""Who sees which task next, and in which order its candidates stand.

Pure functions of stable keys: the same store hands out the same queue and the same display order
whatever the order of import, and an order can be recomputed after its lease was lost.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

MAX_PRIORITY = 1_000
_PLACE_BITS = 40
_HALF_BITS = 20


def queue_rank(task_id: str, priority: int = 0) -> int:
    """Place of a task in the queue; small is early.

    A higher ``priority`` comes first; within one priority the order is random but fixed, so that
    neighbouring prompts of a list are not labelled in a row. All slots of a task share its rank:
    tasks get complete one after the other, and an early snapshot has the full overlap.
    """
    if abs(priority) > MAX_PRIORITY:
        raise ValueError(
            f"priority must lie between {-MAX_PRIORITY} and {MAX_PRIORITY}, got {priority}"
        )
    place = int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:5], "big")
    return (MAX_PRIORITY - priority << _PLACE_BITS) + place


def display_order(secret: bytes, task_id: str, annotator_id: int, n_candidates: int) -> list[int]:
    """A uniformly random permutation of the ordinals, fixed for (task, annotator).

    ``display_order(...)[position]`` is the ordinal shown at that position.
    """

    def place(ordinal: int) -> bytes:
        return keyed_digest(secret, "order", task_id, annotator_id, ordinal)

    return sorted(range(n_candidates), key=place)


def canonical_order(candidate_ids: Sequence[str], seed: int, prompt_id: str) -> list[str]:
    """The candidates in the seeded random order that gives each its ordinal.

    It depends on the set of ids alone, not on how the caller listed them: an ordinal says nothing
    about which checkpoint or seed drew the candidate.
    """

    def place(candidate_id: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{prompt_id}\0{candidate_id}".encode()).digest()

    return sorted(candidate_ids, key=place)


def scramble(secret: bytes, number: int) -> int:
    """Another number below 2**40 for each below 2**40: a Feistel network of four keyed rounds.

    For numbers of rows that a browser sees: in their own order they would tell when a row was made.
    """
    left, right = divmod(number, 1 << _HALF_BITS)
    for turn in range(4):
        left, right = right, left ^ _half(secret, turn, right)
    return (left << _HALF_BITS) + right


def unscramble(secret: bytes, number: int) -> int:
    """The number that `scramble` made ``number`` from."""
    left, right = divmod(number, 1 << _HALF_BITS)
    for turn in reversed(range(4)):
        left, right = right ^ _half(secret, turn, left), left
    return (left << _HALF_BITS) + right


def _half(secret: bytes, turn: int, value: int) -> int:
    digest = keyed_digest(secret, "scramble", turn, value)
    return int.from_bytes(digest[:4], "big") >> (32 - _HALF_BITS)


def keyed_digest(secret: bytes, *parts: object) -> bytes:
    """HMAC-SHA256 of the parts, unambiguous because no part holds a NUL."""
    return hmac.digest(secret, "\0".join(map(str, parts)).encode(), "sha256")


def group_candidates(
    candidate_ids: Sequence[str], size: int, seed: int, prompt_id: str
) -> list[list[str]]:
    """Cut a prompt's candidates into random groups of ``size``, one a task.

    What is left over makes a smaller group of its own when it is two or more.
    """
    if size < 2:
        raise ValueError(f"a task shows at least 2 candidates, got {size}")
    ordered = canonical_order(candidate_ids, seed, prompt_id)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [group for group in groups if len(group) >= 2]
