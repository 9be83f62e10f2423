"""Splits by time and by designer."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotate.records import Candidate, Outcome, Pick, Prompt, Snapshot, Split, Task
from annotate.settings import ConfigError, parse_config
from rewards.by_time import split_by_time
from rewards.config import RewardTrainConfig
from rewards.left_out import leave_each_out
from rewards.report_text import describe_audit, describe_designers, describe_report

TEXTS = {
    "old": "a red kite over the harbour at dawn",
    "held": "three blue cups on a wooden table",
    "late": "一张春节促销海报，红色背景",
    "twin": "A red kite, over the harbour at dawn!",
    "validation": "a lighthouse painted in thick oil",
}


def snapshot(digest, names, picks, splits=None):
    """Two candidates a prompt; ``picks`` are (prompt, revision)."""
    return Snapshot(
        digest=digest,
        folder=Path(),
        prompts=tuple(
            Prompt(id=name, text=TEXTS[name], split=(splits or {}).get(name, Split.TRAIN))
            for name in names
        ),
        candidates=tuple(
            Candidate(id=f"{name}-{i}", prompt_id=name, image_sha256="0", width=8, height=8)
            for name in names
            for i in range(2)
        ),
        tasks=tuple(
            Task(id=name, prompt_id=name, candidate_ids=(f"{name}-0", f"{name}-1"))
            for name in names
        ),
        picks=tuple(
            Pick(id=f"{name}/{k}", task_id=name, annotator="ada", outcome=Outcome.PICKED,
                 win=0, lose=1)
            for name, k in picks
        ),
    )  # fmt: skip


SPLITS = {"held": Split.TEST, "validation": Split.VALIDATION}
OLDER = snapshot("then", ["held", "old", "validation"], [("old", 0), ("validation", 0)], SPLITS)
NEWER = snapshot(
    "now",
    ["held", "late", "old", "twin", "validation"],
    [("held", 0), ("late", 0), ("old", 0), ("old", 1), ("twin", 0), ("validation", 0)],
    SPLITS,
)


def test_what_came_later_is_held_out_and_what_was_known_is_learned_from():
    divided = split_by_time(NEWER, OLDER)
    splits = {prompt.id: prompt.split.value for prompt in divided.prompts}
    # "held" was held out then; "twin" is new, but the text of "old".
    assert splits == {"late": "test", "old": "train", "validation": "validation"}
    # A pick of an old prompt that was made later is not learned from.
    assert [pick.id for pick in divided.picks] == ["late/0", "old/0", "validation/0"]
    assert {candidate.prompt_id for candidate in divided.candidates} == set(splits)
    assert divided.digest == "now after then"


def test_a_split_by_time_needs_both_sides():
    with pytest.raises(ValueError, match="0 are new since then and 2 can be learned from"):
        split_by_time(OLDER, OLDER)
    other = snapshot("other", ["late"], [("late", 0)])
    with pytest.raises(ValueError, match="1 are new since then and 0 can be learned from"):
        split_by_time(other, OLDER)
    settings = {"snapshot": "a", "base": "b", "output_dir": "c", "older": "d"}
    with pytest.raises(ConfigError, match="with older, held_out must be 'test'"):
        parse_config(RewardTrainConfig, settings | {"held_out": "validation"})


def test_each_designer_is_left_out_and_measured(random_base, snapshot_folder, tmp_path):
    config = parse_config(
        RewardTrainConfig,
        {
            "snapshot": str(snapshot_folder),
            "base": str(random_base),
            "output_dir": str(tmp_path),
            "encoder": {"num_blocks": 1, "grid": 4},
            "head": {"width": 32, "num_members": 1, "num_layers": 0},
            "epochs": 1,
        },
    )
    found = leave_each_out(config)
    assert len(found) == 2
    for name, of in found.items():
        assert (tmp_path / f"without-{name}" / "model.safetensors").is_file()
        assert f"- {name}" in (tmp_path / f"without-{name}" / "config.yaml").read_text()
        assert 0 <= of["accuracy_low"] <= of["accuracy"] <= of["accuracy_high"] <= 1
        assert of["ceiling"] > 0.5
        assert name in describe_designers(found)
    assert (tmp_path / "designers.json").is_file()
    with pytest.raises(ValueError, match="to leave out zoe takes picks of theirs"):
        leave_each_out(config, ["zoe"])


def test_the_audit_is_told_on_the_terminal():
    shift = {"shift": 0.73, "low": 0.6, "high": 0.86, "warning": True}
    none = {"shift": -0.01, "low": -0.02, "high": 0.0, "warning": False}
    lines = describe_audit({"saturation +10 %": {"detail": shift, "overall": none}}).splitlines()
    assert lines[1].split() == ["detail", "overall"]
    assert lines[2] == "saturation +10 %  +0.73 [+0.60, +0.86]!  -0.01 [-0.02, +0.00] "


def test_two_heads_of_one_impression_are_told():
    row = {"accuracy": 0.7, "ci_low": 0.6, "ci_high": 0.8, "ceiling": None, "num_pairs": 9}
    report = {
        **row,
        "criteria": {"detail": row, "aesthetics": row},
        "head_correlation": {"detail/aesthetics": 0.97, "detail/instruction": 0.3},
        "num_picks": 3,
        "num_prompts": 2,
        "held_out": "test",
    }
    last = describe_report(report).splitlines()[-1]
    assert last == (
        "detail/aesthetics go together within prompts at 0.97: one impression, not two criteria"
    )
