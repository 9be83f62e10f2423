"""Whether the files of a folder are still as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rewards.folder import write_json

__all__ = ["DIGESTS_FILE", "FileDigest", "damage", "digest_files", "write_digests"]

DIGESTS_FILE = "digests.json"


class FileDigest(TypedDict):
    bytes: int
    sha256: str


def digest_files(folder: Path, rank: int = 0, world: int = 1) -> dict[str, FileDigest]:
    """Size and SHA-256 of this process's share of the files, by their path in ``folder``."""
    return {name: _digest(folder / name) for name in _names(folder)[rank::world]}


def write_digests(folder: Path, known: Mapping[str, FileDigest] | None = None) -> None:
    """Write the list that `damage` goes by; ``known`` are digests that others have taken."""
    known = known or {}
    listed = {name: known.get(name) or _digest(folder / name) for name in _names(folder)}
    write_json(folder / DIGESTS_FILE, listed)


def damage(folder: Path, rank: int = 0, world: int = 1) -> str | None:
    """The first fault among this process's share of the listed files, None when there is none.

    A folder without the list was not written to its end.
    """
    path = folder / DIGESTS_FILE
    try:
        listed: dict[str, FileDigest] = json.loads(path.read_bytes())
        for name, expected in sorted(listed.items())[rank::world]:
            if fault := _fault(folder / name, expected):
                return fault
    except FileNotFoundError:
        return f"{path} is missing"
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return f"{path} is no list of digests: {error}"
    return None


def _fault(path: Path, expected: FileDigest) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path} has {size} bytes, {expected['bytes']} were written"
    if (sha256 := _digest(path)["sha256"]) != expected["sha256"]:
        return f"{path} was changed: its SHA-256 is {sha256}, {expected['sha256']} was written"
    return None


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    return sorted(name for name in names if name != DIGESTS_FILE)


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}
