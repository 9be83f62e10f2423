"""The reward model against the designers' own agreement, on posters that the tiny pipeline draws.

The shipped pipeline draws candidates for captions of the three splits; three simulated designers
label them: one of them each training task, all three each test task, so that there is an agreement
to be held against. A model of configs/tiny/reward.yaml learns from it and is measured on the test
prompts, read once.

python -m benchmarks.measure rewards
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.config import GenerateConfig
from align.demo.studio import (
    CRITERION_QUESTIONS,
    Workplace,
    add_content,
    candidates_by_prompt,
    make_prompts,
    read_candidates,
    write_prompts,
)
from align.generate import generate
from annotate.records import Prompt, Split
from annotate.settings import load_config
from annotate.snapshot import cut_snapshot
from annotate.store import PreferenceStore
from rewards.config import RewardTrainConfig
from rewards.train import train_reward

__all__ = ["measure_reward_model"]

PROMPTS = {Split.TRAIN: 500, Split.VALIDATION: 60, Split.TEST: 200}
OVERLAP = {Split.TRAIN: 1, Split.VALIDATION: 1, Split.TEST: 3}
CANDIDATES = 4
SEED = 0


def measure_reward_model(folder: Path) -> dict[str, Any]:
    """The report of `rewards.train.train_reward`; ``folder`` keeps what was drawn and trained."""
    snapshot = folder / "snapshot"
    if not snapshot.is_dir():
        _label(folder, snapshot)
    config = load_config(
        RewardTrainConfig,
        "configs/tiny/reward.yaml",
        [f"snapshot={snapshot}", f"output_dir={folder / 'reward'}", f"seed={SEED}"],
    )
    report = train_reward(config).report
    return {
        "prompts": {split.value: count for split, count in PROMPTS.items()},
        "candidates": CANDIDATES,
        "designers_of_a_test_task": OVERLAP[Split.TEST],
        "report": report,
    }


def _label(folder: Path, snapshot: Path) -> None:
    """Candidates, their tasks on each criterion, and the designers' picks as a snapshot."""
    prompts: list[Prompt] = []
    for split, count in PROMPTS.items():
        prompts += make_prompts(count, split, SEED)
    drawn = folder / "candidates"
    generate(
        GenerateConfig(
            prompts=write_prompts(folder / "prompts.jsonl", prompts),
            output_dir=drawn,
            candidates=CANDIDATES,
            seed=SEED,
            num_steps=8,
            batch_size=48,
        )
    )
    groups = candidates_by_prompt(read_candidates(drawn))
    with PreferenceStore.open(folder / "studio", pseudonym_key="benchmark") as store:
        workplace = Workplace(store, SEED)
        add_content(store, prompts, drawn)
        for question in CRITERION_QUESTIONS:
            for split, overlap in OVERLAP.items():
                chosen = {p.id: groups[p.id] for p in prompts if p.split == split}
                store.add_tasks(chosen, question, overlap, seed=SEED)
        workplace.know(prompts)
        workplace.label_everything()
        cut_snapshot(store, snapshot, kinds=["standard"])
