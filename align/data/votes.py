"""Several people's picks on the same two images, made one pair."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from align.data.rows import ImagePair

__all__ = ["merge_votes"]

PRIOR_PICKS = 2.0
"""How many picks the snapshot's own share of dissent weighs in the share of one pair."""


def merge_votes(pairs: Sequence[ImagePair]) -> list[ImagePair]:
    """One pair of all that compare the same two images, with the dissenters' share as smoothing.

    The share of one pair, of a handful of votes, leans to that of all: with ``n`` votes and ``d``
    against the majority, ``eps = (d + 2 p) / (n + 2)``, where ``p`` is the chance that one vote is
    flipped. Two votes agree with probability ``p^2 + (1 - p)^2``, which is counted. Where the votes
    are even, eps is 1/2: the pair asks for no difference. Ties stay as they are.

    Raises:
        ValueError: no two votes are on the same pair, so that agreement cannot be told.
    """
    votes: dict[tuple[str, ...], list[ImagePair]] = defaultdict(list)
    for pair in pairs:
        if not pair.is_tie:
            first, second = sorted((pair.chosen.sha256, pair.rejected.sha256))
            votes[*pair.request.identity, first, second].append(pair)
    flipped = _flip_rate(votes.values())
    merged = [pair for pair in pairs if pair.is_tie]
    for looks in votes.values():
        count = Counter(pair.chosen.sha256 for pair in looks)
        majority, ayes = count.most_common(1)[0]
        winner = min((p for p in looks if p.chosen.sha256 == majority), key=lambda pair: pair.id)
        total = len(looks)
        share = (total - ayes + PRIOR_PICKS * flipped) / (total + PRIOR_PICKS)
        merged.append(
            replace(
                winner,
                weight=sum(pair.weight for pair in looks),
                annotator="",
                label_smoothing=0.5 if 2 * ayes == total else min(share, 0.5),
            )
        )
    return merged


def _flip_rate(votes: Iterable[Sequence[ImagePair]]) -> float:
    """p with ``p^2 + (1 - p)^2`` the share of agreeing votes, over every two on the same pair."""
    same = total = 0
    for looks in votes:
        count = Counter(pair.chosen.sha256 for pair in looks)
        same += sum(math.comb(n, 2) for n in count.values())
        total += math.comb(len(looks), 2)
    if not total:
        raise ValueError(
            "smoothing_from_agreement needs two picks on the same candidates; every pair has one: "
            "give label_smoothing a number instead"
        )
    return (1 - math.sqrt(max(0.0, 2 * same / total - 1))) / 2
