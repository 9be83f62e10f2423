"""What a policy is paid for, kept for people to look at.

Pictures of a rollout lie in a folder that a studio takes in as candidates, with the rewards beside
them, where no annotator sees them::

    contact_sheets/rollout-000010-0/
      sheet.json          rollout, reason, and the reward of each candidate by task
      sheet.png           the same for an engineer, highest reward first
      prompts.jsonl, candidates.jsonl, images/
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image as PILImage
from pydantic import BaseModel, ConfigDict, FiniteFloat

from annotate.records import Candidate, Prompt
from rewards.base import RewardItem
from rewards.folder import write_text
from rewards.monitors import contact_sheet
from rewards.service.schema import encode_png

__all__ = ["SHEETS", "Picture", "Sheet", "SheetTask", "choose_groups", "read_sheets", "write_sheet"]

SHEETS = "contact_sheets"
"""Folder in a run's folder."""
IMAGES_PER_TASK = 4


class SheetTask(BaseModel):
    """Candidates of one prompt, which stand in one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_id: str
    rewards: dict[str, FiniteFloat]
    """By candidate id, the highest first."""


class Sheet(BaseModel):
    """``sheet.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rollout: int
    """From 1."""
    reason: str
    """The alarm that stopped the run; empty for a sheet that was due."""
    tasks: tuple[SheetTask, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a rollout."""

    prompt: Prompt
    image: PILImage
    reward: float
    source: Path | None = None
    """The file of the prompt's source image, where it edits one."""


def choose_groups(
    items: Sequence[RewardItem],
    rewards: Sequence[float | None],
    prompts: int | None,
    images: int = IMAGES_PER_TASK,
) -> list[list[int]]:
    """Places of the images to keep, a list for each prompt, the highest reward first.

    The prompts are those with the highest rewards; of each, its highest, its lowest, and others
    evenly between them by rank. Images without a reward, and prompts with fewer than two, are left
    out.

    Args:
        prompts: at most this many; None takes all.
        images: of each prompt, at least 2.
    """
    groups: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for place, (item, reward) in enumerate(zip(items, rewards, strict=True)):
        if reward is not None:
            groups[item.group_id].append((reward, place))
    ranked = [sorted(of, key=lambda pair: (-pair[0], pair[1])) for of in groups.values()]
    ranked = sorted((of for of in ranked if len(of) > 1), key=lambda of: (-of[0][0], of[0][1]))
    return [_spread([place for _, place in of], images) for of in ranked[:prompts]]


def write_sheet(
    folder: Path, rollout: int, reason: str, groups: Sequence[Sequence[Picture]]
) -> None:
    """Write one sheet's folder; ``sheet.json`` comes last, so that a torn one is not read."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    prompts: dict[str, Prompt] = {}
    candidates: dict[str, Candidate] = {}
    tasks: list[SheetTask] = []
    for group in groups:
        of_task: dict[str, float] = {}
        for picture in group:
            candidate = _save(picture, folder / "images")
            prompts[picture.prompt.id] = picture.prompt
            if picture.source is not None:
                name = f"{picture.prompt.source_image}.png"
                shutil.copyfile(picture.source, folder / "images" / name)
            candidates[candidate.id] = candidate
            of_task.setdefault(candidate.id, picture.reward)
        if len(of_task) > 1:  # pictures that are the same are one candidate
            tasks.append(SheetTask(prompt_id=group[0].prompt.id, rewards=of_task))
    for name, records in (("prompts", prompts), ("candidates", candidates)):
        lines = "".join(record.model_dump_json() + "\n" for record in records.values())
        write_text(folder / f"{name}.jsonl", lines)
    shown = [picture for group in groups for picture in group]
    if shown:
        sheet = contact_sheet([p.image for p in shown], [p.reward for p in shown])
        sheet.save(folder / "sheet.png")
    done = Sheet(rollout=rollout, reason=reason, tasks=tuple(tasks))
    write_text(folder / "sheet.json", done.model_dump_json(indent=2) + "\n")


def read_sheets(run: Path) -> Mapping[Path, Sheet]:
    """The sheets of a run by their folders, in the order of the rollouts.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: one is damaged; names it.
    """
    found: dict[Path, Sheet] = {}
    for path in sorted((run / SHEETS).glob("*/sheet.json")):
        try:
            found[path.parent] = Sheet.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    if not found:
        raise FileNotFoundError(
            f"no contact sheets in {run}: set contact_sheet_every of `winsome grpo`, or watch the "
            "run by a mix with `monitor`, which keeps one at an alarm"
        )
    return found


def _spread(places: Sequence[int], count: int) -> list[int]:
    """``count`` of them, evenly, with the first and the last."""
    if len(places) <= count:
        return list(places)
    return [places[round(k * (len(places) - 1) / (count - 1))] for k in range(count)]


def _save(picture: Picture, folder: Path) -> Candidate:
    data = encode_png(picture.image.convert("RGB"))
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256}.png"
    if not path.is_file():
        path.write_bytes(data)
    # By content alone: neither the name nor the order tells what the image was paid.
    name = hashlib.sha256(f"{picture.prompt.id}/{sha256}".encode()).hexdigest()[:24]
    return Candidate(
        id=f"rollout-{name}",
        prompt_id=picture.prompt.id,
        image_sha256=sha256,
        width=picture.image.width,
        height=picture.image.height,
    )
