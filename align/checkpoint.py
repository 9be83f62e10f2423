"""Checkpoints that survive a kill at any moment: written aside, synced, then renamed into place.

A run folder holds ``checkpoints/step-00000120/``. While a checkpoint is written its folder is named
``.writing-...``; the rename is atomic, so a folder named ``step-...`` was complete when it got its
name. Whether it still is, the digests of its files tell (`rewards.digests`). What else is inside
belongs to the engine and to the loop.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CheckpointFolder",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "read_json",
    "write_error",
]

_STEP = re.compile(r"step-(\d{8})")
_WRITING = ".writing-"


def write_error(path: Path, error: BaseException) -> OSError:
    """The error to raise when ``path`` could not be written; it names the path and the cause.

    torch and safetensors report a full disk as a `RuntimeError` of their own.
    """
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return OSError(f"cannot write {path}: {reason}")


def _is_write_failure(error: BaseException) -> bool:
    from safetensors import SafetensorError

    if isinstance(error, SafetensorError) or (isinstance(error, OSError) and error.errno):
        return True
    texts = ("PytorchStreamWriter", "inline_container", "unexpected pos")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _fsync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _fsync(Path(root) / name)
        _fsync(Path(root))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write a file so that at every moment it holds the old content or the new one.

    Raises:
        OSError: names ``path``; the old content is untouched.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a file name to write to; on leaving it is synced and becomes ``path`` at once.

    Raises:
        OSError: names ``path``; its old content is untouched.
    """
    temporary = path.with_name(f"{_WRITING}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        if _is_write_failure(error):
            raise write_error(path, error) from error
        raise


@contextlib.contextmanager
def atomic_folder(
    target: Path, is_main: bool = True, barrier: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Yield a folder to write into; on leaving it is synced and becomes ``target`` at once.

    An existing ``target`` is replaced only by a complete successor. All processes of a distributed
    run enter together and write into the same folder; ``is_main`` creates and renames it, and
    ``barrier`` keeps them in step.

    Raises:
        OSError: a write failed (disk full, no permission): names ``target``, which is untouched.
    """
    temporary = target.with_name(f"{_WRITING}{target.name}")
    try:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        yield temporary
        barrier()
        if is_main:
            _fsync_tree(temporary)
            old = target.with_name(f"{_WRITING}old-{target.name}")
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.replace(target, old)
            os.replace(temporary, target)
            _fsync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        barrier()
    except Exception as error:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        if _is_write_failure(error):
            raise write_error(target, error) from error
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; ``ValueError`` names the file when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    folder: Path
    keep: int
    """How many of the newest stay."""

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = (_STEP.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def latest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest complete checkpoint."""
        steps = self.steps()
        return (steps[-1], self.path(steps[-1])) if steps else None

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that it no longer counts; returns its new place."""
        place = self.folder / f"damaged-{self.path(step).name}"
        shutil.rmtree(place, ignore_errors=True)
        self.path(step).rename(place)
        return place

    def prune(self) -> None:
        """Remove all but the newest ``keep`` checkpoints, and what a killed writer left behind."""
        if not self.folder.is_dir():
            return
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(step), ignore_errors=True)
        for left in self.folder.glob(f"{_WRITING}*"):
            shutil.rmtree(left, ignore_errors=True)
