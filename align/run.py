"""A run's folder: what was run, on what, and what came out.

::

    config.yaml        the resolved configuration, itself a valid input
    run.json           command, code revision, seed, data digests, versions, threads, status
    metrics.jsonl      one line a step
    trackers/          TensorBoard and others
    checkpoints/       see `align.checkpoint`
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

from align.checkpoint import CheckpointFolder, atomic_write, read_json, write_error
from align.config import TrainConfig, dump_config, load_config
from align.metrics import read_metrics
from annotate.settings import changed_settings

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

    Every process constructs it; it only reads. `begin` writes, on the main process.

    Raises:
        ValueError: the folder holds a run of another configuration; names each difference.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.path = config.output_dir
        self.final = self.path / "final"
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", config.keep_checkpoints)
        self._info_path = self.path / "run.json"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir {self.path} is a file; a folder is needed")
        if self.checkpoints.latest() or self.final.exists():
            self._refuse_other_config()

    def _refuse_other_config(self) -> None:
        path = self.path / "config.yaml"
        if not path.is_file():
            raise ValueError(f"{self.path} has checkpoints but no config.yaml; choose another")
        stored = load_config(type(self.config), path)
        different = changed_settings(stored, self.config, OPERATIONAL)
        if different:
            listing = "\n  ".join(different)
            raise ValueError(
                f"{self.path} holds a run of another configuration; choose another output_dir, or "
                f"ask for the same settings:\n  {listing}"
            )

    @property
    def is_finished(self) -> bool:
        return self.final.is_dir() and self.info().get("status") == "finished"

    def info(self) -> dict[str, Any]:
        """What run.json says; empty before the first run."""
        return read_json(self._info_path) if self._info_path.is_file() else {}

    def begin(self, command: str, **facts: Any) -> None:
        """Write config.yaml and run.json (main process only).

        Raises:
            OSError: the folder cannot be written; names it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        before = self.info() if self.checkpoints.latest() else {}
        if before.get("data") != facts.get("data") and before:
            raise ValueError(
                f"{self.path} was begun on other data: {before.get('data')} there, "
                f"{facts.get('data')} now; choose another output_dir"
            )
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
