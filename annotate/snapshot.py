"""Snapshots: cut from a store, read anywhere. Neither needs more than pydantic.

The digest covers prompts, candidates with what drew them, tasks, and picks with ordinals, outcomes
and pseudonyms. Clock times, telemetry and the images' location are outside; the images themselves
are inside by their hashes. The same picks give the same digest from SQLite and from PostgreSQL,
whatever the order of import.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from annotate.image_files import ImageFiles
from annotate.pairs import derive_pairs, derive_rankings
from annotate.schema import (
    Candidate,
    Outcome,
    Pick,
    PreferencePair,
    Prompt,
    Question,
    Ranking,
    Record,
    Split,
    Task,
    faults,
)

if TYPE_CHECKING:
    from annotate.store import PreferenceStore

FORMAT = 1
MANIFEST = "snapshot.json"
IMAGES = "images"
RECORD_FILES: dict[str, type[Record]] = {
    "prompts.jsonl": Prompt,
    "candidates.jsonl": Candidate,
    "tasks.jsonl": Task,
    "picks.jsonl": Pick,
}
# Left out where they say nothing, so that what was cut before they came keeps its digest.
LATER_FIELDS: dict[type[Record], tuple[str, ...]] = {
    Prompt: ("source_image",),
    Task: ("reference",),
    Pick: ("reasons", "regions", "marks"),
}
R = TypeVar("R", bound=Record)
# JSON leaves these as they are, and str.splitlines() cuts there.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


class SnapshotError(ValueError):
    """A snapshot that is empty, incomplete or not what its digest says."""


@dataclass(frozen=True)
class Snapshot:
    """An immutable set of picks with everything they are about."""

    digest: str
    """SHA-256 over the content."""
    folder: Path
    prompts: tuple[Prompt, ...]
    """Sorted by id, as are the other records."""
    candidates: tuple[Candidate, ...]
    tasks: tuple[Task, ...]
    picks: tuple[Pick, ...]
    spec: dict[str, Any] = field(default_factory=dict)
    """The filters it was cut with."""
    images: ImageFiles | None = None
    """Where the images lie, when not in the snapshot's own folder."""

    @cached_property
    def prompt_of(self) -> dict[str, Prompt]:
        """Prompts by id."""
        return {prompt.id: prompt for prompt in self.prompts}

    @cached_property
    def candidate_of(self) -> dict[str, Candidate]:
        """Candidates by id."""
        return {candidate.id: candidate for candidate in self.candidates}

    @cached_property
    def task_of(self) -> dict[str, Task]:
        """Tasks by id."""
        return {task.id: task for task in self.tasks}

    def select(
        self,
        question: Question | str | None = None,
        split: Split | str | None = None,
        outcome: Outcome | str | None = None,
    ) -> Iterator[Pick]:
        """The picks on one question, of one split (a pick follows its prompt), of one outcome."""
        question = None if question is None else Question(question)
        split = None if split is None else Split(split)
        outcome = None if outcome is None else Outcome(outcome)
        for pick in self.picks:
            task = self.task_of[pick.task_id]
            if (
                question in (None, task.question)
                and split in (None, self.prompt_of[task.prompt_id].split)
                and outcome in (None, pick.outcome)
            ):
                yield pick

    def pairs(
        self,
        policy: str = "win_lose",
        question: Question | str | None = None,
        split: Split | str | None = None,
    ) -> list[PreferencePair]:
        """The preference pairs under a policy of `annotate.pairs.PAIR_POLICIES`."""
        return list(derive_pairs(self.task_of, self.select(question, split), policy))

    def rankings(
        self, question: Question | str | None = None, split: Split | str | None = None
    ) -> list[Ranking]:
        """Each pick as best, middle, worst, for a Plackett-Luce likelihood."""
        return list(derive_rankings(self.task_of, self.select(question, split)))

    def annotator_temperatures(self, pick_ids: Collection[str]) -> dict[str, float]:
        """How closely each annotator chooses as the others do: 0 is the closest; needs numpy.

        Those of `annotate.reliability.annotator_reliability` over the named picks. Annotators whose
        tasks nobody else answered have none.
        """
        from annotate.reliability import annotator_reliability

        picks = [pick for pick in self.picks if pick.id in pick_ids]
        found = annotator_reliability(self.task_of, picks)
        return {reliability.annotator: reliability.temperature for reliability in found}

    def image_path(self, candidate: Candidate | str) -> Path:
        """The PNG file of a candidate, or of an image's SHA-256.

        Raises:
            FileNotFoundError: it is not where images lie; the message says where that is.
        """
        sha256 = candidate if isinstance(candidate, str) else candidate.image_sha256
        places = [ImageFiles.open(self.folder / IMAGES), *([self.images] if self.images else [])]
        for files in places:
            path = files.path(sha256)
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"no image {sha256}.png in {' or '.join(map(str, places))}; cut the snapshot with "
            "its images, or name their place when loading it"
        )

    def read_image(self, candidate: Candidate | str) -> bytes:
        """The PNG file of a candidate, or of a source image's SHA-256.

        Raises:
            FileNotFoundError: as `image_path`.
            SnapshotError: it is not the file that was labelled; names it.
        """
        path = self.image_path(candidate)
        data = path.read_bytes()
        if isinstance(candidate, str):
            _check_image(path, candidate, "a source image", data)
        else:
            _check_image(path, candidate.image_sha256, f"candidate {candidate.id!r}", data)
        return data

    def verify_images(self) -> None:
        """Read every image and compare its hash; SnapshotError names the first that differs."""
        for sha256, owner in _images_of(self.prompts, self.candidates).items():
            path = self.image_path(sha256)
            _check_image(path, sha256, owner, path.read_bytes())


def cut_snapshot(
    store: PreferenceStore,
    folder: str | Path,
    with_images: bool = True,
    questions: Collection[Question | str] | None = None,
    kinds: Collection[str] | None = None,
    splits: Collection[Split | str] | None = None,
) -> Snapshot:
    """Write the store's current picks as a snapshot into the new folder ``folder``.

    A task whose annotators have all answered is closed by it: no answer is taken back any more.
    Where a reviewer has overridden or discarded answers, that holds; the answers themselves stay in
    the store. Checks (gold, qualification, repeat) are left out unless ``kinds`` names them.

    The folder appears whole or not at all. Cutting the same content there again is no error.

    Args:
        with_images: copy the images too, which makes the snapshot self-contained.
        questions, kinds, splits: keep only the tasks and prompts of these; None keeps all, of
            kinds all but the checks.

    Raises:
        SnapshotError: there are no picks to cut, or an image in the store is missing or damaged.
        FileExistsError: the folder is there already and is not this snapshot.
    """
    folder = Path(folder)
    content = store.labelled(questions, kinds, splits)
    prompts, candidates, _, picks = content
    spec = {
        "questions": _sorted_values(questions),
        "kinds": _sorted_values(kinds),
        "splits": _sorted_values(splits),
    }
    if not picks:
        filtered = " under these filters" if any(spec.values()) else ""
        raise SnapshotError(
            f"there are no picks to cut a snapshot from{filtered}; label some tasks first"
        )
    files = {name: _to_lines(records) for name, records in zip(RECORD_FILES, content, strict=True)}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    counts = {
        name.removesuffix(".jsonl"): len(records)
        for name, records in zip(RECORD_FILES, content, strict=True)
    }
    manifest = {
        "format": FORMAT,
        "digest": _digest(hashes),
        "files": hashes,
        "counts": {**counts, "annotators": len({pick.annotator for pick in picks})},
        "spec": spec,
        "with_images": with_images,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    if not _is_snapshot(folder, manifest["digest"], with_images):
        images = _images_of(prompts, candidates) if with_images else {}
        _write_folder(folder, files, images, store)
    judged = {pick.task_id for pick in picks}
    store.add_snapshot(manifest["digest"], str(folder.resolve()), manifest["counts"], judged)
    return load_snapshot(folder, images=store.images.location)


def load_snapshot(folder: str | Path, images: str | Path | None = None) -> Snapshot:
    """Read a snapshot and verify its digest.

    Args:
        images: a folder or an fsspec URL with ``<sha256>.png`` files, for a snapshot without
            images.

    Raises:
        FileNotFoundError: there is no snapshot in ``folder``.
        SnapshotError: a file is missing, was changed, or does not fit the others.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    loaded: dict[str, list[Any]] = {}
    for name, record in RECORD_FILES.items():
        path = folder / name
        if not path.is_file():
            raise SnapshotError(f"the snapshot {folder} is incomplete: there is no {name}")
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != manifest["files"].get(name):
            raise SnapshotError(
                f"{path} was changed after the snapshot was cut: its SHA-256 is {found}, "
                f"the manifest says {manifest['files'].get(name)}"
            )
        loaded[name] = _from_lines(record, data, path)
    digest = _digest(manifest["files"])
    if digest != manifest["digest"]:
        raise SnapshotError(
            f"{folder / MANIFEST} was changed: it says digest {manifest['digest']}, "
            f"the files give {digest}"
        )
    prompts, candidates, tasks, picks = loaded.values()
    snapshot = Snapshot(
        digest=digest,
        folder=folder,
        prompts=tuple(prompts),
        candidates=tuple(candidates),
        tasks=tuple(tasks),
        picks=tuple(picks),
        spec=manifest["spec"],
        images=None if images is None else ImageFiles.open(images),
    )
    _check_references(snapshot)
    return snapshot


def _digest(hashes: dict[str, str]) -> str:
    covered = {"format": FORMAT, "files": {name: hashes[name] for name in RECORD_FILES}}
    return hashlib.sha256(json_line(covered).encode()).hexdigest()


def json_line(value: Any) -> str:
    """JSON on one line, whatever a reader takes for the end of a line, with the keys sorted."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.translate(_LINE_ENDS)


def _to_lines(records: Iterable[Record]) -> bytes:
    return "".join(json_line(_values(record)) + "\n" for record in records).encode()


def _values(record: Record) -> dict[str, Any]:
    values = record.model_dump(mode="json")
    for name in LATER_FIELDS.get(type(record), ()):
        if values[name] in (None, []):
            del values[name]
    return values


def _from_lines(record: type[R], data: bytes, path: Path) -> list[R]:
    records = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            records.append(record.model_validate_json(line))
        except ValidationError as error:
            raise SnapshotError(f"{path}, line {number}: {faults(error)}") from error
    return records


def _sorted_values(values: Collection[str] | None) -> list[str] | None:
    return None if values is None else sorted(str(value) for value in values)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no snapshot in {folder}: there is no {MANIFEST}")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise SnapshotError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise SnapshotError(f"{path} must hold an object, got {type(manifest).__name__}")
    missing = {"format", "digest", "files", "spec"} - manifest.keys()
    if missing:
        raise SnapshotError(f"{path} lacks {', '.join(sorted(missing))}")
    if manifest["format"] != FORMAT:
        raise SnapshotError(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _check_references(snapshot: Snapshot) -> None:
    """Every pick names a task and ordinals that are there, every task its prompt and candidates."""
    for task in snapshot.tasks:
        if task.prompt_id not in snapshot.prompt_of:
            raise SnapshotError(f"task {task.id} names prompt {task.prompt_id!r}, not in here")
        for candidate_id in task.candidate_ids:
            if candidate_id not in snapshot.candidate_of:
                raise SnapshotError(f"task {task.id} names candidate {candidate_id!r}, not in here")
    for pick in snapshot.picks:
        if pick.task_id not in snapshot.task_of:
            raise SnapshotError(f"pick {pick.id} names task {pick.task_id}, which is not in here")
        shown = len(snapshot.task_of[pick.task_id].candidate_ids)
        if max(pick.win or 0, pick.lose or 0) >= shown:
            raise SnapshotError(f"pick {pick.id} names an ordinal past the {shown} candidates")


def _is_snapshot(folder: Path, digest: str, with_images: bool) -> bool:
    """Whether ``folder`` holds this snapshot already; FileExistsError when it holds anything else.

    An empty folder holds nothing.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if (folder / MANIFEST).is_file():
        manifest = _read_manifest(folder)
        if manifest["digest"] == digest and manifest.get("with_images", False) >= with_images:
            return True
    raise FileExistsError(f"{folder} is there already; a snapshot is cut into a new folder")


def _write_folder(
    folder: Path,
    contents: dict[str, bytes],
    images: Mapping[str, str],
    store: PreferenceStore,
) -> None:
    """Write all files beside ``folder``, then rename: readers see a whole snapshot or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        for name, data in contents.items():
            _write_file(partial / name, data)
        for sha256, owner in images.items():
            source = store.image_path(sha256)
            target = partial / IMAGES / source.name
            if not source.is_file():
                raise SnapshotError(f"the store lacks the image of {owner}")
            data = source.read_bytes()
            _check_image(source, sha256, owner, data)
            target.parent.mkdir(exist_ok=True)
            _write_file(target, data)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _images_of(prompts: Iterable[Prompt], candidates: Iterable[Candidate]) -> dict[str, str]:
    """Every image by its SHA-256, and whose it is, in words."""
    sources = {p.source_image: f"prompt {p.id!r}" for p in prompts if p.source_image is not None}
    return sources | {c.image_sha256: f"candidate {c.id!r}" for c in candidates}


def _check_image(path: Path, sha256: str, owner: str, data: bytes) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SnapshotError(
            f"the image {path} of {owner} is damaged: its SHA-256 is {found}, expected {sha256}"
        )
