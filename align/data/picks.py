"""Preferences from snapshots and JSONL files: pairs, whole lists, single thumbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from align.config import JsonlPairsConfig, PairsConfig, SnapshotPairsConfig
from align.data.images import ImageFile, MarkedRegion
from align.data.rows import (
    FileName,
    ImageList,
    ImagePair,
    Number,
    Request,
    Row,
    Rows,
    digest,
    read_jsonl,
    sample_id,
    split_rows,
)
from align.data.votes import merge_votes
from annotate.records import Outcome, Pick, Region, Snapshot, Split, load_snapshot

__all__ = ["read_lists", "read_pairs", "read_thumbs"]

S = TypeVar("S", ImagePair, ImageList)


class _PreferenceRow(Row):
    weight: Number = Field(default=1.0, gt=0)
    annotator: str = ""


class _PairRow(_PreferenceRow):
    chosen: FileName
    rejected: FileName
    label_smoothing: Number | None = Field(default=None, ge=0, le=0.5)
    tie: bool = False
    region: FileName | None = None
    noise_keys: tuple[str, str] | None = None


class _ListRow(_PreferenceRow):
    images: tuple[FileName, ...] = Field(min_length=2)


class _ThumbRow(_PreferenceRow):
    image: FileName
    desirable: bool


def _different(images: Sequence[ImageFile]) -> Sequence[ImageFile]:
    """The images, of which none may be another."""
    seen: dict[str, ImageFile] = {}
    for image in images:
        other = seen.setdefault(image.sha256, image)
        if other is not image:
            raise ValueError(
                f"{other.path} and {image.path} are the same image: there is nothing to prefer"
            )
    return images


class _SnapshotImages(dict[str, ImageFile]):
    """Images by candidate: one object each, so that a file is read, and checked, once."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot
        self._sources: dict[str, ImageFile] = {}

    def __missing__(self, candidate_id: str) -> ImageFile:
        candidate = self.snapshot.candidate_of[candidate_id]
        file = ImageFile(self.snapshot.image_path(candidate), candidate.image_sha256)
        return self.setdefault(candidate_id, file)

    def sources(self, prompt_id: str) -> tuple[ImageFile, ...]:
        """What the prompt asks to edit."""
        sha256 = self.snapshot.prompt_of[prompt_id].source_image
        if sha256 is None:
            return ()
        return (self._sources.setdefault(sha256, self._file(sha256)),)

    def _file(self, sha256: str) -> ImageFile:
        return ImageFile(self.snapshot.image_path(sha256), sha256)


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
        files = [ImageFile(folder / name) for name in (row.chosen, row.rejected)]
        chosen, rejected = _different(files)
        request = Request(row.prompt, row.sources(folder))
        return ImagePair(
            sample_id(row.prompt, chosen.sha256, rejected.sha256, *request.identity[1:]),
            row.prompt,
            chosen,
            rejected,
            row.weight,
            row.annotator,
            row.label_smoothing,
            row.tie,
            None if row.region is None else ImageFile(folder / row.region),
            row.noise_keys,
            request.sources,
        )

    rows = _read_rows(config, _PairRow, sample, fraction, "pairs")
    if ties:
        return rows
    train = [pair for pair in rows.train if not pair.is_tie]
    if not train:
        raise ValueError(
            f"{config.path} has no pairs to train on but ties; objective.tie_threshold above 0 "
            "trains on them"
        )
    return Rows(
        train,
        [pair for pair in rows.validation if not pair.is_tie],
        rows.source,
        [pair for pair in rows.annotators if not pair.is_tie],
    )


def _read_snapshot_pairs(config: SnapshotPairsConfig, ties: bool) -> Rows[ImagePair]:
    snapshot = load_snapshot(config.path, images=config.images)
    images = _SnapshotImages(snapshot)

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
                        images, identity, pair.prompt_id, pair.chosen_id, pair.rejected_id,
                        pair.weight, pair.annotator,
                    )  # fmt: skip
                    rejected = snapshot.task_of[pair.task_id].candidate_ids.index(pair.rejected_id)
                    faults = [r for r in regions.get(pair.pick_id, ()) if r.ordinal == rejected]
                    found.append(_compared_at(image_pair, faults, snapshot, pair.rejected_id))
        return found + (_ties(images, config, splits) if ties else [])

    rows = _snapshot_rows(config, snapshot, pairs, "win-and-lose")
    if not config.smoothing_from_agreement:
        return rows
    return Rows(merge_votes(rows.train), rows.validation, rows.source, rows.annotators)


def _pair(
    images: _SnapshotImages,
    identity: str,
    prompt_id: str,
    chosen_id: str,
    rejected_id: str,
    weight: float,
    annotator: str,
    is_tie: bool = False,
) -> ImagePair:
    snapshot = images.snapshot
    candidates = [snapshot.candidate_of[i] for i in (chosen_id, rejected_id)]
    keys = [c.generation.noise_key if c.generation else "" for c in candidates]
    return ImagePair(
        identity,
        snapshot.prompt_of[prompt_id].text,
        images[chosen_id],
        images[rejected_id],
        weight,
        annotator,
        is_tie=is_tie,
        noise_keys=(keys[0], keys[1]) if all(keys) else None,
        sources=images.sources(prompt_id),
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
    images: _SnapshotImages, config: SnapshotPairsConfig, splits: Iterable[Split]
) -> list[ImagePair]:
    """All pairs of each "all equal", which together weigh 1."""
    snapshot, found = images.snapshot, []
    for pick in _picks(snapshot, config, splits, Outcome.ALL_EQUAL):
        task = snapshot.task_of[pick.task_id]
        pairs = list(combinations(task.candidate_ids, 2))
        found += [
            _pair(images, f"{pick.id}/{a}/{b}", task.prompt_id, a, b, 1 / len(pairs),
                  pick.annotator, is_tie=True)
            for a, b in pairs
        ]  # fmt: skip
    return found


# Lists and thumbs ---------------------------------------------------------------------------------


def read_lists(config: PairsConfig, fraction: float) -> Rows[ImageList]:
    """Whole lists for Plackett-Luce: of each pick, the best, the undecided and the worst image.

    "All equal" enters as such; "all bad" compares nothing. Raises as `read_pairs`.
    """
    if not isinstance(config, SnapshotPairsConfig):
        folder = config.path.parent

        def sample(row: _ListRow) -> ImageList:
            files = [ImageFile(folder / name) for name in row.images]
            images = tuple(_different(files))
            sources = row.sources(folder)
            identity = sample_id(row.prompt, *(file.sha256 for file in (*images, *sources)))
            return ImageList(
                identity, row.prompt, images, row.weight, row.annotator, True, sources=sources
            )

        return _read_rows(config, _ListRow, sample, fraction, "lists")
    snapshot = load_snapshot(config.path, images=config.images)
    files = _SnapshotImages(snapshot)

    def lists(splits: Iterable[Split]) -> list[ImageList]:
        found = []
        for pick in _picks(snapshot, config, splits, Outcome.PICKED, Outcome.ALL_EQUAL):
            ids = list(snapshot.task_of[pick.task_id].candidate_ids)
            if pick.win is not None and pick.lose is not None:
                best, worst = ids[pick.win], ids[pick.lose]
                ids = [best, *(i for i in ids if i not in (best, worst)), worst]
            found.append(_list(files, pick, ids, is_equal=pick.outcome == Outcome.ALL_EQUAL))
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
            request = Request(row.prompt, row.sources(folder))
            identity = sample_id(
                row.prompt, image.sha256, str(row.desirable), *request.identity[1:]
            )
            return ImageList(
                identity, row.prompt, (image,), row.weight, row.annotator,
                is_desirable=row.desirable, sources=request.sources,
            )  # fmt: skip

        return _read_rows(config, _ThumbRow, sample, fraction, "images")
    snapshot = load_snapshot(config.path, images=config.images)
    files = _SnapshotImages(snapshot)

    def thumbs(splits: Iterable[Split]) -> list[ImageList]:
        found = []
        for pick in _picks(snapshot, config, splits, *Outcome):
            verdicts = _thumbs(pick, len(snapshot.task_of[pick.task_id].candidate_ids))
            ids = snapshot.task_of[pick.task_id].candidate_ids
            found += [
                _list(files, pick, [ids[i]], is_desirable=up, weight=1 / len(verdicts))
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
    images: _SnapshotImages,
    pick: Pick,
    ids: Sequence[str],
    is_equal: bool = False,
    is_desirable: bool = True,
    weight: float = 1.0,
) -> ImageList:
    snapshot = images.snapshot
    return ImageList(
        "/".join([pick.id, *ids]),
        snapshot.prompt_of[snapshot.task_of[pick.task_id].prompt_id].text,
        tuple(images[i] for i in ids),
        weight,
        pick.annotator,
        is_equal=is_equal,
        is_desirable=is_desirable,
        sources=images.sources(snapshot.task_of[pick.task_id].prompt_id),
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
