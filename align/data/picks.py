"""Preferences from snapshots and JSONL files: pairs, whole lists, single thumbs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from align.config import JsonlPairsConfig, PairsConfig, SnapshotPairsConfig
from align.data.images import ImageFile, MarkedRegion
from align.data.rows import (
    ImageList,
    ImagePair,
    Row,
    Rows,
    digest,
    read_jsonl,
    sample_id,
    split_rows,
)
from annotate.records import Outcome, Pick, Region, Snapshot, Split, load_snapshot

__all__ = ["merge_votes", "read_lists", "read_pairs", "read_thumbs"]

S = TypeVar("S", ImagePair, ImageList)
PRIOR_PICKS = 2.0
"""How many picks the snapshot's own share of dissent weighs in the share of one pair."""


class _PreferenceRow(Row):
    weight: float = Field(default=1.0, gt=0)
    annotator: str = ""


class _PairRow(_PreferenceRow):
    chosen: str
    rejected: str
    label_smoothing: float | None = Field(default=None, ge=0, le=0.5)
    tie: bool = False
    region: str | None = None
    noise_keys: tuple[str, str] | None = None


class _ListRow(_PreferenceRow):
    images: tuple[str, ...] = Field(min_length=2)


class _ThumbRow(_PreferenceRow):
    image: str
    desirable: bool


# Pairs --------------------------------------------------------------------------------------------


def read_pairs(config: PairsConfig, fraction: float, ties: bool = False) -> Rows[ImagePair]:
    """Pairs of images from a snapshot or from a JSONL file.

    Args:
        fraction: part of the prompts to hold out where rows name no split (JSONL).
        ties: also the pairs of which neither was preferred.

    Raises:
        FileNotFoundError: the file or folder, or one of the images, is missing.
        ValueError: a line is not as it should be, or there is no pair; names the file.
    """
    if isinstance(config, SnapshotPairsConfig):
        return _read_snapshot_pairs(config, ties)
    folder = config.path.parent

    def sample(row: _PairRow) -> ImagePair:
        chosen, rejected = ImageFile(folder / row.chosen), ImageFile(folder / row.rejected)
        return ImagePair(
            sample_id(row.prompt, chosen.sha256, rejected.sha256),
            row.prompt,
            chosen,
            rejected,
            row.weight,
            row.annotator,
            row.label_smoothing,
            row.tie,
            None if row.region is None else ImageFile(folder / row.region),
            row.noise_keys,
        )

    rows = _read_rows(config, _PairRow, sample, fraction, "pairs")
    if ties:
        return rows
    return Rows(
        [pair for pair in rows.train if not pair.is_tie],
        [pair for pair in rows.validation if not pair.is_tie],
        rows.source,
        [pair for pair in rows.annotators if not pair.is_tie],
    )


def _read_snapshot_pairs(config: SnapshotPairsConfig, ties: bool) -> Rows[ImagePair]:
    snapshot = load_snapshot(config.path, images=config.images)

    regions = {pick.id: pick.regions for pick in snapshot.picks}
    if config.compare == "image":
        regions = {}

    def pairs(splits: Iterable[Split]) -> list[ImagePair]:
        found = []
        for split in splits:
            for question in config.questions:
                for pair in snapshot.pairs(config.policy, question, split):
                    identity = f"{pair.pick_id}/{pair.chosen_id}/{pair.rejected_id}"
                    image_pair = _pair(
                        snapshot, identity, pair.prompt_id, pair.chosen_id, pair.rejected_id,
                        pair.weight, pair.annotator,
                    )  # fmt: skip
                    rejected = snapshot.task_of[pair.task_id].candidate_ids.index(pair.rejected_id)
                    faults = [r for r in regions.get(pair.pick_id, ()) if r.ordinal == rejected]
                    found.append(_compared_at(image_pair, faults, snapshot, pair.rejected_id))
        return found + (_ties(snapshot, config, splits) if ties else [])

    rows = _snapshot_rows(config, snapshot, pairs, "win-and-lose")
    if not config.smoothing_from_agreement:
        return rows
    return Rows(merge_votes(rows.train), rows.validation, rows.source, rows.annotators)


def _pair(
    snapshot: Snapshot,
    identity: str,
    prompt_id: str,
    chosen_id: str,
    rejected_id: str,
    weight: float,
    annotator: str,
    is_tie: bool = False,
) -> ImagePair:
    candidates = [snapshot.candidate_of[i] for i in (chosen_id, rejected_id)]
    keys = [c.generation.noise_key if c.generation else "" for c in candidates]
    return ImagePair(
        identity,
        snapshot.prompt_of[prompt_id].text,
        ImageFile(snapshot.image_path(candidates[0])),
        ImageFile(snapshot.image_path(candidates[1])),
        weight,
        annotator,
        is_tie=is_tie,
        noise_keys=(keys[0], keys[1]) if all(keys) else None,
    )


def _compared_at(
    pair: ImagePair, faults: Sequence[Region], snapshot: Snapshot, rejected_id: str
) -> ImagePair:
    """The pair, compared in the regions that its pick marks on the rejected image, if any."""
    if not faults:
        return pair
    candidate = snapshot.candidate_of[rejected_id]
    rectangles = tuple((r.x, r.y, r.width, r.height) for r in faults)
    return replace(pair, region=MarkedRegion((candidate.height, candidate.width), rectangles))


def _ties(
    snapshot: Snapshot, config: SnapshotPairsConfig, splits: Iterable[Split]
) -> list[ImagePair]:
    """All pairs of each "all equal", which together weigh 1."""
    found = []
    for pick in _picks(snapshot, config, splits, Outcome.ALL_EQUAL):
        task = snapshot.task_of[pick.task_id]
        pairs = list(combinations(task.candidate_ids, 2))
        found += [
            _pair(snapshot, f"{pick.id}/{a}/{b}", task.prompt_id, a, b, 1 / len(pairs),
                  pick.annotator, is_tie=True)
            for a, b in pairs
        ]  # fmt: skip
    return found


def merge_votes(pairs: Sequence[ImagePair]) -> list[ImagePair]:
    """One pair of all that compare the same two images, with the dissenters' share as smoothing.

    The share of one pair, of a handful of votes, leans to that of all: with ``n`` votes and ``d``
    against the majority, ``eps = (d + 2 p) / (n + 2)``, where ``p`` is the chance that one vote is
    flipped. Two votes agree with probability ``p^2 + (1 - p)^2``, which is counted. Where the votes
    are even, eps is 1/2: the pair asks for no difference. Ties stay as they are.

    Raises:
        ValueError: no two votes are on the same pair, so that agreement cannot be told.
    """
    votes: dict[tuple[str, str, str], list[ImagePair]] = defaultdict(list)
    for pair in pairs:
        if not pair.is_tie:
            first, second = sorted((pair.chosen.sha256, pair.rejected.sha256))
            votes[pair.prompt, first, second].append(pair)
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


# Lists and thumbs ---------------------------------------------------------------------------------


def read_lists(config: PairsConfig, fraction: float) -> Rows[ImageList]:
    """Whole lists for Plackett-Luce: of each pick, the best, the undecided and the worst image.

    "All equal" enters as such; "all bad" compares nothing. Raises as `read_pairs`.
    """
    if not isinstance(config, SnapshotPairsConfig):
        folder = config.path.parent

        def sample(row: _ListRow) -> ImageList:
            images = tuple(ImageFile(folder / name) for name in row.images)
            identity = sample_id(row.prompt, *(image.sha256 for image in images))
            return ImageList(identity, row.prompt, images, row.weight, row.annotator, True)

        return _read_rows(config, _ListRow, sample, fraction, "lists")
    snapshot = load_snapshot(config.path, images=config.images)

    def lists(splits: Iterable[Split]) -> list[ImageList]:
        found = []
        for pick in _picks(snapshot, config, splits, Outcome.PICKED, Outcome.ALL_EQUAL):
            ids = list(snapshot.task_of[pick.task_id].candidate_ids)
            if pick.win is not None and pick.lose is not None:
                best, worst = ids[pick.win], ids[pick.lose]
                ids = [best, *(i for i in ids if i not in (best, worst)), worst]
            found.append(_list(snapshot, pick, ids, is_equal=pick.outcome == Outcome.ALL_EQUAL))
        return found

    return _snapshot_rows(config, snapshot, lists, "win-and-lose")


def read_thumbs(config: PairsConfig, fraction: float) -> Rows[ImageList]:
    """Single images with a thumb for KTO.

    A pick's own thumbs, or where it has none: of a pick the best is liked and the worst is not, of
    "all bad" none is liked. The images of a pick together weigh 1. Raises as `read_pairs`.
    """
    if not isinstance(config, SnapshotPairsConfig):
        folder = config.path.parent

        def sample(row: _ThumbRow) -> ImageList:
            image = ImageFile(folder / row.image)
            identity = sample_id(row.prompt, image.sha256, str(row.desirable))
            return ImageList(
                identity, row.prompt, (image,), row.weight, row.annotator,
                is_desirable=row.desirable,
            )  # fmt: skip

        return _read_rows(config, _ThumbRow, sample, fraction, "images")
    snapshot = load_snapshot(config.path, images=config.images)

    def thumbs(splits: Iterable[Split]) -> list[ImageList]:
        found = []
        for pick in _picks(snapshot, config, splits, *Outcome):
            verdicts = _thumbs(pick, len(snapshot.task_of[pick.task_id].candidate_ids))
            ids = snapshot.task_of[pick.task_id].candidate_ids
            found += [
                _list(snapshot, pick, [ids[i]], is_desirable=up, weight=1 / len(verdicts))
                for i, up in verdicts.items()
            ]
        return found

    return _snapshot_rows(config, snapshot, thumbs, "thumbs, win-and-lose or all-bad")


def _thumbs(pick: Pick, num_candidates: int) -> dict[int, bool]:
    """Ordinal -> whether it is liked."""
    own = {mark.ordinal: mark.thumb == "up" for mark in pick.marks if mark.thumb}
    if own:
        return own
    if pick.win is not None and pick.lose is not None:
        return {pick.win: True, pick.lose: False}
    return dict.fromkeys(range(num_candidates if pick.outcome == Outcome.ALL_BAD else 0), False)


def _list(
    snapshot: Snapshot,
    pick: Pick,
    ids: Sequence[str],
    is_equal: bool = False,
    is_desirable: bool = True,
    weight: float = 1.0,
) -> ImageList:
    return ImageList(
        "/".join([pick.id, *ids]),
        snapshot.prompt_of[snapshot.task_of[pick.task_id].prompt_id].text,
        tuple(ImageFile(snapshot.image_path(snapshot.candidate_of[i])) for i in ids),
        weight,
        pick.annotator,
        is_equal=is_equal,
        is_desirable=is_desirable,
    )


# Both sources -------------------------------------------------------------------------------------


def _picks(
    snapshot: Snapshot, config: SnapshotPairsConfig, splits: Iterable[Split], *outcomes: Outcome
) -> list[Pick]:
    return [
        pick
        for split in splits
        for question in config.questions
        for pick in snapshot.select(question, split)
        if pick.outcome in outcomes
    ]


def _snapshot_rows(
    config: SnapshotPairsConfig,
    snapshot: Snapshot,
    samples: Callable[[Iterable[Split]], list[S]],
    kind: str,
) -> Rows[S]:
    found = samples(config.splits)
    train, aside = _without_annotators(found, config.held_out_annotators, config.path)
    if not train:
        raise ValueError(
            f"the snapshot {config.path} has no {kind} pick for the questions "
            f"{', '.join(config.questions)} in the splits {', '.join(config.splits)}"
        )
    held_out = [] if Split.VALIDATION in config.splits else samples([Split.VALIDATION])
    source = {"path": str(config.path), "snapshot_digest": snapshot.digest}
    return Rows(train, held_out, source, aside)


def _read_rows(
    config: JsonlPairsConfig,
    model: type[_PreferenceRow],
    sample: Callable[..., S],
    fraction: float,
    kind: str,
) -> Rows[S]:
    found = list(read_jsonl(config.path, model))
    if not found:
        raise ValueError(f"{config.path} has no {kind}")
    source = {"path": str(config.path), **digest(config.path)}
    rows = split_rows(found, sample, fraction, source)
    train, aside = _without_annotators(rows.train, config.held_out_annotators, config.path)
    if not train:
        raise ValueError(f"{config.path} has no {kind} but those of held_out_annotators")
    return Rows(train, rows.validation, source, aside)


def _without_annotators(
    samples: Sequence[S], names: Sequence[str], path: Path
) -> tuple[list[S], list[S]]:
    """Those of the others, and those of the annotators ``names``."""
    known = {sample.annotator for sample in samples}
    if set(names) - known:
        raise ValueError(
            f"held_out_annotators has {sorted(set(names) - known)}; {path} has picks of "
            f"{', '.join(sorted(known)) or 'nobody'}"
        )
    train = [sample for sample in samples if sample.annotator not in names]
    return train, [sample for sample in samples if sample.annotator in names]
