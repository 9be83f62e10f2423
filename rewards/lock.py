"""One writer at a time in a folder of results."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

__all__ = ["FolderInUseError", "FolderLock"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderInUseError(OSError):
    """Another process writes into the folder."""


class FolderLock:
    """Keeps other processes out of ``folder``, from construction until `release`.

    It is flock(2) on a file whose text names the holder: the system drops it when the holder ends,
    by ``kill -9`` too. The file stays; were it removed, two processes could each lock one of its
    name.

    Raises:
        FolderInUseError: another process holds it; names the folder and the process.
        OSError: the folder cannot be made or written; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._file: IO[str] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OSError(f"cannot write {folder}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise FolderInUseError(_in_use(folder, file)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "%s lies on a file system without locks (%s): nothing keeps a second process out",
                folder,
                error.strerror,
            )
        self._file = file
        _held.add(self)
        file.truncate(0)
        file.write(json.dumps(_self_description()) + "\n")
        file.flush()

    def release(self) -> None:
        """Let others in; without effect the second time."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    """A forked child shares the lock of its parent, and would keep it when the parent is gone."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_all)


def _self_description() -> dict[str, str | int]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _in_use(folder: Path, file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        name = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except ValueError:
        # It has the lock and has not written its name yet.
        name = "another process"
    return f"{folder} is in use by {name}: wait for it, stop it, or name another output folder"
