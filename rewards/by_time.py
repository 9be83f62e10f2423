"""A split by time: what was known then is learned from, what came later is held out.

A snapshot keeps no clock times; an older snapshot of the same studio says what was known.
"""

from __future__ import annotations

from dataclasses import replace

from annotate.records import Prompt, Snapshot, Split
from rewards.components import snapshot_components
from rewards.splits import what_is_asked

__all__ = ["split_by_time"]


def split_by_time(newer: Snapshot, older: Snapshot, images: bool = False) -> Snapshot:
    """``newer`` with the prompts that ``older`` does not have as its test split, and no other.

    Prompts that ``older`` has keep their split, with the picks that it has of them; those of the
    test split are left out, since what was held out then shall stay so. A new prompt that is alike
    an older one (`rewards.components`) is left out too: it is neither new nor known.

    Args:
        images: compare images too, of which each is read.

    Raises:
        ValueError: nothing of ``newer`` is new, or nothing of it is old.
    """
    known_ids = {prompt.id for prompt in older.prompts}
    known_texts = {what_is_asked(prompt) for prompt in older.prompts}
    is_old = {
        prompt.id: prompt.id in known_ids or what_is_asked(prompt) in known_texts
        for prompt in newer.prompts
    }
    kept: dict[str, Prompt] = {}
    for component in snapshot_components(newer, images):
        has_old = any(is_old[prompt_id] for prompt_id in component.prompt_ids)
        for prompt_id in component.prompt_ids:
            prompt = newer.prompt_of[prompt_id]
            if not has_old:
                kept[prompt_id] = prompt.model_copy(update={"split": Split.TEST})
            elif prompt_id in known_ids and prompt.split != Split.TEST:
                kept[prompt_id] = prompt
    splits = {prompt.split for prompt in kept.values()}
    if Split.TEST not in splits or len(splits) == 1:
        new = sum(prompt.split == Split.TEST for prompt in kept.values())
        raise ValueError(
            f"snapshot {newer.digest} has {len(newer.prompts)} prompts, of which {new} are new "
            f"since {older.digest} and {len(kept) - new} can be learned from; expected some of both"
        )
    known_picks = {pick.id for pick in older.picks}
    tasks = tuple(task for task in newer.tasks if task.prompt_id in kept)
    prompt_of_task = {task.id: kept[task.prompt_id] for task in tasks}
    return replace(
        newer,
        digest=f"{newer.digest} after {older.digest}",
        prompts=tuple(kept[prompt_id] for prompt_id in sorted(kept)),
        candidates=tuple(c for c in newer.candidates if c.prompt_id in kept),
        tasks=tasks,
        picks=tuple(
            pick
            for pick in newer.picks
            if (prompt := prompt_of_task.get(pick.task_id)) is not None
            and (prompt.split == Split.TEST or pick.id in known_picks)
        ),
    )
