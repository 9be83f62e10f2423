"""Checkpoints of pretraining: one file, replaced as a whole."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, step: int, **parts: Any) -> None:
    """Write the ``state_dict`` of every part with ``step``; a kill leaves the old file intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, **{k: part.state_dict() for k, part in parts.items()}}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path, **parts: Any) -> int:
    """Load the parts saved at ``path`` and return their step; 0 when there is no such file.

    Raises:
        ValueError: the file is damaged; names it.
    """
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged ({str(error).splitlines()[0] if str(error) else 'it is empty'}): "
            "put it back as it was, or remove it to do its part of the pretraining again"
        ) from error
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
