"""Which checkpoint a reward model's training goes on from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from rewards.digests import DIGESTS_FILE, damage
from rewards.folder import read_json

__all__ = ["last_whole_checkpoint"]

logger = logging.getLogger(__name__)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose files, and those of the best one that it names, are whole.

    One that was not written to its end is removed; a damaged one is renamed, and the run continues
    from one before it with the same numbers.

    Raises:
        ValueError: all are damaged; names a file.
    """
    faults: dict[Path, str] = {}
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if not (path / DIGESTS_FILE).is_file():
            logger.warning("removing %s: it was not written to its end", path)
            shutil.rmtree(path)
            continue
        fault = damage(path) or _damaged_best(path)
        if fault is None:
            _set_aside(faults)
            return str(path)
        faults[path] = fault
    if faults:
        raise ValueError(
            f"the checkpoint is damaged: {next(iter(faults.values()))}. There is no whole one "
            f"before it: put the file back as it was, or remove {folder} to begin anew"
        )
    return None


def _damaged_best(path: Path) -> str | None:
    """What is wrong with the checkpoint that a run continued from ``path`` would end on."""
    best = read_json(path / "trainer_state.json")["best_model_checkpoint"]
    return damage(path.parent / Path(best).name) if best else None


def _set_aside(faults: Mapping[Path, str]) -> None:
    for path, fault in faults.items():
        place = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(place, ignore_errors=True)
        path.rename(place)
        logger.error("the checkpoint is damaged: %s. It was renamed to %s", fault, place)
