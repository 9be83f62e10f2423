"""Metrics of a run: one JSON line a step, any accelerate tracker, a progress bar.

``metrics.jsonl`` is the record; trackers are views of it. After a resume, lines beyond the
checkpoint are cut off before new ones are written, so that no step stands twice.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from align.checkpoint import atomic_write, write_error

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["MetricsLog", "read_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line torn by a kill is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than the last is not JSON; names the file and the line.
    """
    lines = path.read_bytes().splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return rows


class MetricsLog:
    """Where a loop reports its figures. Only the main process writes.

    Args:
        folder: the run folder; receives ``metrics.jsonl``.
        accelerator: carries the trackers named in the configuration.
        total_steps: length of the progress bar.
        resumed_step: the step of the checkpoint; later lines of an earlier attempt are removed.
            None starts anew.
        progress: whether to draw a bar when standard error is a terminal.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        total_steps: int,
        resumed_step: int | None = None,
        progress: bool = True,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.accelerator = accelerator
        self.is_main = accelerator.is_main_process
        self._clock = time.perf_counter()
        self._file = None
        if self.is_main:
            self._truncate(-1 if resumed_step is None else resumed_step)
            try:
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise write_error(self.path, error) from error
        if accelerator.log_with:
            plain = {key: _plain(value) for key, value in (config or {}).items()}
            accelerator.init_trackers(
                "trackers",
                config=plain if resumed_step is None else None,
                # TensorBoard hides what an earlier attempt wrote beyond the checkpoint.
                init_kwargs={"tensorboard": {"purge_step": resumed_step + 1}}
                if resumed_step
                else {},
            )
        hidden = not (progress and self.is_main and sys.stderr.isatty())
        self._bar = tqdm(total=total_steps, initial=resumed_step or 0, disable=hidden, unit="step")

    def _truncate(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line for ``step``; ``seconds`` is the time since the line before.

        Raises:
            OSError: the file cannot be written; names it.
        """
        if not self.is_main:
            return
        now = time.perf_counter()
        row = {"step": step, **metrics, "seconds": round(now - self._clock, 6)}
        self._clock = now
        assert self._file is not None
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error
        if self.accelerator.trackers:
            self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step)
        self._bar.update(step - self._bar.n)
        if not self._bar.disable:
            shown = ("loss", "validation/loss", "rewards/accuracies", "reward", "kl")
            self._bar.set_postfix({k: f"{row[k]:.4g}" for k in shown if k in row}, refresh=False)

    def close(self) -> None:
        """Finish the bar and the trackers."""
        self._bar.close()
        if self._file is not None:
            self._file.close()
        # Not `end_training`, which would also end the process group.
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _plain(value: Any) -> Any:
    """Trackers store scalars; a list or null becomes its text."""
    return value if isinstance(value, int | float | str | bool) else json.dumps(value)
