"""What a run draws while it trains, what the studio sees of it, and when gold ends a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_data import CAPTIONS, FirstChannel, grpo_config, losses, sft_config, write_data

from align.checkpoint import read_json
from align.config import GenerateConfig
from align.generate import generate
from align.offline import train_sft
from align.online import train_grpo
from annotate.records import Candidate
from annotate.schema import Run
from annotate.settings import ConfigError, parse_config
from annotate.web.samples import grid
from rewards.base import Score, ScorerSpec
from rewards.scorers.build import BUILDERS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


class Gold:
    """Scores as it is told; None: by the image's redness."""

    spec = ScorerSpec("gold", "1", (), frozenset({"image"}))

    def __init__(self, values: list[float] | None = None) -> None:
        self.values = values

    def score(self, items):
        if self.values is not None:
            return [Score(self.values[0])] * (len(items) - 1) + [Score(self.values.pop(0))]
        return [Score(float(np.asarray(item.image)[..., 0].mean())) for item in items]


def samples(data: Path, **changes) -> dict:
    (data / "shown.txt").write_text("\n".join(CAPTIONS[:3]))
    drawn = {"height": 32, "width": 32, "num_steps": 2, "candidates": 2, "seed": 7, "batch_size": 2}
    return {"prompts": data / "shown.txt", "every": 2, **drawn, **changes}


GOLD = {"type": "text_rendering", "engine": "tesseract"}


def test_a_run_shows_the_same_prompts_and_noise_as_it_learns(
    data, untrained_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(BUILDERS, "text_rendering", lambda config: Gold())
    config = sft_config(
        data, untrained_folder, tmp_path / "run", max_steps=3, validation={"every": 0},
        samples=samples(data, gold=GOLD),
    )  # fmt: skip
    train_sft(config)
    sets = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert sets == ["step-00000000", "step-00000002", "step-00000003"]
    rows = losses(tmp_path / "run")
    assert [step for step, row in rows.items() if "samples/gold" in row] == [0, 2, 3]

    def drawn(folder: Path) -> dict[str, str]:
        lines = (folder / "candidates.jsonl").read_text().splitlines()
        found = [Candidate.model_validate_json(line) for line in lines]
        return {c.generation.noise_key: c.image_sha256 for c in found if c.generation}

    first, last = (drawn(tmp_path / "run" / "samples" / name) for name in (sets[0], sets[-1]))
    assert first.keys() == last.keys()
    assert len(first) == 6
    assert set(first.values()).isdisjoint(last.values())
    # Before training it draws what `winsome generate` draws with the base model.
    settings = {k: v for k, v in samples(data).items() if k != "every"}
    settings |= {"model": str(untrained_folder), "output_dir": tmp_path / "base"}
    generate(parse_config(GenerateConfig, settings))
    assert drawn(tmp_path / "base") == first
    with Image.open(tmp_path / "run" / "samples" / sets[0] / "grid.png") as image:
        assert image.size == (2 * 32, 3 * 32)
    # The studio finds them, to be compared blindly.
    seen = grid(Run(id="r", kind="sft", folder=str(tmp_path / "run")))
    assert seen["sets"] == sets
    assert [None in row["images"] for row in seen["rows"]] == [False] * 6


def test_a_run_ends_when_gold_no_longer_rises_and_its_checkpoint_has_the_count(
    data, untrained_folder, tmp_path, monkeypatch
):
    """The reward rises all the while: it is not asked. Gold is best at step 2."""
    told = [1.0, 3.0, 2.0, 2.9, 5.0]
    monkeypatch.setitem(BUILDERS, "text_rendering", lambda config: Gold(told))
    config = grpo_config(
        data, untrained_folder, tmp_path / "run", save_every=2,
        samples=samples(data, candidates=1, gold=GOLD, patience=2),
    )  # fmt: skip
    result = train_grpo(config, FirstChannel())
    assert result.steps == 6
    assert read_json(tmp_path / "run" / "run.json")["stopped_early"] == {
        "step": 6, "by": "gold", "best_step": 2,
    }  # fmt: skip
    assert told == [5.0]
    state = json.loads((tmp_path / "run/checkpoints/step-00000004/state.json").read_text())
    assert state["gold"] == {
        "patience": 2, "min_delta": 0.0, "best": -3.0, "best_step": 2, "stale": 1,
    }  # fmt: skip


def test_gold_is_never_the_reward(data, untrained_folder, tmp_path):
    with pytest.raises(ConfigError, match="patience 2 needs gold"):
        grpo_config(data, untrained_folder, tmp_path, samples=samples(data, patience=2))
    gold = {"type": "preference", "path": tmp_path / "reward"}
    config = grpo_config(
        data, untrained_folder, tmp_path / "run", reward={"path": tmp_path / "reward"},
        samples=samples(data, gold=gold),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"samples\.gold is what the run is rewarded by"):
        train_grpo(config)
