"""A run's folder: what was run, on what, and what came out.

::

    config.yaml        the resolved configuration, itself a valid input
    run.json           command, code revision, seed, data digests, versions, threads, status
    packages.txt       every installed package and its version
    metrics.jsonl      one line a step
    trackers/          TensorBoard and others
    checkpoints/       see `align.checkpoint`
    samples/           images of fixed prompts, see `align.samples`
    .lock              who is writing here, see `rewards.lock`
    final/             the export in stock diffusers form, present when the run has finished
"""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from align.checkpoint import CheckpointFolder, atomic_write, read_json
from align.config import ConfigError, TrainConfig, dump_config, load_config
from align.metrics import read_metrics
from annotate.settings import changed_settings
from rewards.lock import FolderLock

__all__ = ["RunFolder", "RunResult", "code_revision"]

OPERATIONAL = frozenset(
    {"save_every", "keep_checkpoints", "cache_dir", "trackers", "progress", "output_dir"}
)
"""Settings that may differ when a run is continued: they cannot change its numbers."""


@dataclass(frozen=True)
class RunResult:
    """What a trainer hands back."""

    folder: Path
    export: Path
    """A LoRA folder for ``load_lora_weights``, or a pipeline folder."""
    steps: int
    """Optimizer steps taken, those before a resume included."""
    metrics: dict[str, float]
    """The last line of metrics.jsonl."""


def code_revision() -> dict[str, Any]:
    """Version of the package and, in a git checkout, its commit and whether files were changed."""
    revision: dict[str, Any] = {"version": metadata.version("winsome"), "commit": None}
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode == 0:
            status = subprocess.run(
                [*git, "status", "--porcelain", "--untracked-files=no"],
                capture_output=True,
                text=True,
            )
            revision |= {"commit": head.stdout.strip(), "changed": bool(status.stdout.strip())}
    return revision


class RunFolder:
    """Opens ``config.output_dir`` for a new run or for one to be continued.

    Every process constructs it; it only reads. `open` and `begin` write, on the main process.

    Raises:
        ValueError: the folder holds a run of another configuration; names each difference.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.path = config.output_dir
        self.final = self.path / "final"
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", config.keep_checkpoints)
        self._info_path = self.path / "run.json"
        self._lock: FolderLock | None = None
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir {self.path} is a file; a folder is needed")
        self._refuse_other_config()

    def _refuse_other_config(self) -> None:
        if not self.is_begun:
            return
        path = self.path / "config.yaml"
        if not path.is_file():
            raise ValueError(f"{self.path} has checkpoints but no config.yaml; choose another")
        try:
            stored = load_config(type(self.config), path)
        except ConfigError as error:
            raise ValueError(
                f"{self.path} holds a run of another command, or of a version with other settings; "
                f"choose another output_dir\n  {error}"
            ) from error
        self._refuse(changed_settings(stored, self.config, OPERATIONAL), "of another configuration")

    def _refuse(self, different: list[str], what: str) -> None:
        if different:
            listing = "\n  ".join(different)
            kind = "a finished run" if self.is_finished else "a run"
            raise ValueError(
                f"{self.path} holds {kind} {what}; choose another output_dir, give it what it had, "
                f"or remove the folder to begin anew:\n  {listing}"
            )

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds steps that could be continued, or a result."""
        return self.checkpoints.latest() is not None or self.final.exists()

    @property
    def is_finished(self) -> bool:
        return self.final.is_dir() and self.info().get("status") == "finished"

    def info(self) -> dict[str, Any]:
        """What run.json says; empty before the first run."""
        return read_json(self._info_path) if self._info_path.is_file() else {}

    def confirm(self, **inputs: Any) -> None:
        """Refuse inputs that are not those with which the run in the folder was begun.

        Args:
            inputs: mappings that name what the run learns from, by content.

        Raises:
            ValueError: names each difference and what can be done.
        """
        if not self.is_begun:
            return
        info = self.info()
        there = _flat({name: info.get(name) for name in inputs})
        here = _flat(json.loads(json.dumps(inputs, default=str)))
        different = [
            f"{key}: {there.get(key)!r} there, {here.get(key)!r} now"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        self._refuse(different, "on other data")

    def open(self) -> None:
        """Make the folder and keep other processes out of it, until `close`.

        Raises:
            FolderInUseError: another process writes there; names it.
            OSError: the folder cannot be written; names it.
        """
        self._lock = FolderLock(self.path)
        # Another run may have been begun there since the configurations were compared.
        self._refuse_other_config()

    def close(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, command: str, **facts: Any) -> None:
        """Write config.yaml and run.json; the folder is open.

        Raises:
            OSError: the folder cannot be written; names it.
        """
        before = self.info() if self.checkpoints.latest() else {}
        atomic_write(self.path / "config.yaml", dump_config(self.config))
        self._write(
            {
                "command": command,
                "status": "running",
                "seed": self.config.seed,
                "started": before.get("started", _now()),
                "attempts": before.get("attempts", 0) + 1,
                "code": code_revision(),
                "versions": _versions(),
                **facts,
            }
        )
        atomic_write(self.path / "packages.txt", "\n".join(_packages()) + "\n")
        self.checkpoints.prune()

    def update(self, **facts: Any) -> None:
        """Add facts to run.json (main process only)."""
        self._write(self.info() | facts)

    def finish(self, steps: int) -> None:
        """Mark the run as finished (main process only)."""
        self.update(status="finished", steps=steps, finished=_now())

    def result(self) -> RunResult:
        """What a finished run has to show."""
        rows = read_metrics(self.path / "metrics.jsonl")
        return RunResult(
            folder=self.path,
            export=self.final,
            steps=self.info()["steps"],
            metrics=rows[-1] if rows else {},
        )

    def _write(self, info: dict[str, Any]) -> None:
        text = json.dumps(info, indent=2, ensure_ascii=False, default=str) + "\n"
        atomic_write(self._info_path, text)


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """``{"data": {"path": ...}}`` as ``{"data.path": ...}``."""
    return {
        f"{name}.{key}" if key else name: value
        for name, part in tree.items()
        for key, value in (part.items() if isinstance(part, dict) else [("", part)])
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _packages() -> list[str]:
    found = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name)


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
