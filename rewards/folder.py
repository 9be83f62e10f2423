"""What lies in a reward model's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

WEIGHTS_FILE = "model.safetensors"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
"""The same as a page."""
CONFIG_FILE = "config.yaml"
"""The resolved settings of the run."""
INPUTS_FILE = "inputs.json"
"""What the run learns from, by content."""
TRAINED_ON_FILE = "trained_on.json"
"""Digests of the prompts that shaped the model, by which a later evaluation refuses them."""
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
FEATURES = "features"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file: readers see all of it or the file as it was."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON as `write_text` does."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
