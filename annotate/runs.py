"""Run folders as the studio's Runs page lists them."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from annotate.schema import Run

INFO, REPORT, CONFIG, METRICS = "run.json", "report.json", "config.yaml", "metrics.jsonl"


def read_run(folder: str | Path, run_id: str | None = None) -> Run:
    """The run in a folder of ``winsome sft | dpo | grpo``, or of ``winsome reward train``.

    The curves stay in the folder; the figures of its last step, or of a reward model's report, come
    along.

    Args:
        run_id: its name in the studio; by default the folder's.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no run.
        ValueError: a file in it cannot be read; the message names it.
    """
    folder = Path(folder)
    values: dict[str, Any] = {"id": run_id or folder.resolve().name}
    if (folder / INFO).is_file():
        info = _json(folder / INFO)
        data = info.get("data")
        values |= {
            "kind": str(info.get("command", "")).split(" ")[0],
            "status": info.get("status"),
            "snapshot_digest": data.get("snapshot_digest") if isinstance(data, dict) else None,
            "metrics": _numbers(_last_line(folder / METRICS)),
        }
        if info.get("started"):
            values["created_at"] = datetime.fromisoformat(info["started"])
    elif (folder / REPORT).is_file():
        report = _json(folder / REPORT)
        values |= {
            "kind": "reward",
            "status": "finished",
            "snapshot_digest": report.get("snapshot_digest"),
            "metrics": _numbers(report),
        }
    else:
        raise FileNotFoundError(f"no run in {folder}: there is neither {INFO} nor {REPORT}")
    config = folder / CONFIG
    try:
        text = config.read_text(encoding="utf-8") if config.is_file() else "{}"
        return Run(folder=str(folder.resolve()), config=yaml.safe_load(text) or {}, **values)
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise ValueError(f"{folder} is not a run that can be listed: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, got {type(found).__name__}")
    return found


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line; a run that goes on may be in the middle of one."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for line in reversed(lines):
        if line.endswith(b"\n") and line.strip():
            try:
                return json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is not JSON lines: {error}") from error
    return {}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max  # JSON has integers of any length
    }
