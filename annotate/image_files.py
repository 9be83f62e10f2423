"""Where PNG files lie by the SHA-256 of their bytes: in a folder, or in any store of fsspec."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, Self


class ImageFiles:
    """Content-addressed PNG files.

    Those of a remote store (``s3://bucket/prefix``, ``gs://...``) are kept in a folder of this
    machine too once they were read or written. A file never changes, so that copy is never stale;
    the folder may be emptied at any time.
    """

    def __init__(self, location: str, folder: Path, remote: Any = None, root: str = ""):
        self.location = location
        """As it was given: a folder or a URL."""
        self.folder = folder
        """Of this machine."""
        self._remote = remote
        self._root = root

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """Files in a folder, which need not exist, or below a URL that fsspec knows.

        Raises:
            ValueError: fsspec knows no such protocol.
            OSError: the package for the protocol is missing, or the store cannot be reached.
        """
        text = str(location)
        if "://" not in text:
            return cls(text, Path(location))
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise OSError(f"{text} needs the package fsspec, for S3: pip install s3fs") from error
        try:
            remote, root = url_to_fs(text)
        except ValueError as error:
            raise ValueError(f"not a place for images: {text!r} ({error})") from error
        except ImportError as error:
            raise OSError(f"{text} needs another package: {error}") from error
        if text.startswith(("file://", "local://")):
            return cls(text, Path(root))
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        files = cls(text, Path(cache).expanduser() / "winsome" / name, remote, root.rstrip("/"))
        files._ask("exists", files._root)
        return files

    def __str__(self) -> str:
        return self.location

    def path(self, sha256: str) -> Path:
        """The file on this machine, fetched where need be; it does not exist if none is stored.

        Raises:
            OSError: the remote store cannot be reached, or what it holds is another file.
        """
        path = self.folder / f"{sha256}.png"
        if self._remote is None or path.is_file():
            return path
        data = self.stored(sha256)
        if data is None:
            return path
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise OSError(f"{self.location}/{path.name} was changed: its SHA-256 is {found}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_once(path, data)
        return path

    def stored(self, sha256: str) -> bytes | None:
        """The bytes as they are stored now, past any copy; None where there are none."""
        name = f"{sha256}.png"
        if self._remote is None:
            path = self.folder / name
            return path.read_bytes() if path.is_file() else None
        try:
            return self._ask("cat_file", f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def put(self, sha256: str, data: bytes) -> None:
        """Keep ``data``, which has this hash; readers see all of it or nothing."""
        name = f"{sha256}.png"
        if self._remote is not None and not self._ask("exists", f"{self._root}/{name}"):
            self._ask("pipe_file", f"{self._root}/{name}", data)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_once(self.folder / name, data)

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self._remote, method)(*args)
        except Exception as error:  # every backend has its own for network and credentials
            if method == "cat_file" and isinstance(error, FileNotFoundError):
                raise
            raise OSError(f"cannot use the images at {self.location}: {error}") from error


def write_once(path: Path, data: bytes) -> None:
    """Write a content-addressed file; readers see all of it or nothing, also after a crash."""
    if path.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
