"""The objectives' bars by hand, and each recipe's settings and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.config import GRPOConfig
from annotate.settings import load_config
from benchmarks.objective_bars import OBJECTIVES, forwards_to_gain, gain_interval
from benchmarks.objectives import CURVES, FULL, RECIPES, _forwards, _settings


def record(window_gain: float) -> dict:
    """Three seeds of two prompts; the full trajectory gains 10 %."""
    gains = {"flow_grpo_window": (window_gain, 1024), FULL: (0.1, 4096)}
    runs = [
        {"objective": name, "by_prompt": [0.5 * (1 + g), 1.0 * (1 + g)], "training_forwards": n}
        for name, (g, n) in gains.items()
        for _ in range(3)
    ]
    return {"start": {"by_prompt": [0.5, 1.0]}, "runs": runs}


def test_a_gain_common_to_all_prompts_and_seeds_has_an_interval_of_no_width():
    assert gain_interval(record(0.05), FULL) == pytest.approx((10, 10, 10))


def test_seeds_and_prompts_both_widen_the_interval():
    raw = record(0.05)
    raw["runs"][0]["by_prompt"] = [0.5, 1.0]
    value, low, high = gain_interval(raw, "flow_grpo_window")
    assert value == pytest.approx(100 * 0.1 / 3)
    assert low == pytest.approx(0, abs=1e-9)
    assert high == pytest.approx(5)


def test_a_gain_of_fewer_seeds_is_no_figure():
    raw = record(0.05)
    del raw["runs"][0]
    with pytest.raises(ValueError, match="2 seeds, expected 3"):
        gain_interval(raw, "flow_grpo_window")


def test_forwards_are_told_only_where_the_gain_is_reached():
    assert forwards_to_gain(record(0.095), "flow_grpo_window") == 0.25
    with pytest.raises(ValueError, match=r"gained 8\.00 %.*10\.00 %"):
        forwards_to_gain(record(0.08), "flow_grpo_window")


def test_recipes_parse_and_draw_as_many_images_or_picks(tmp_path):
    assert set(RECIPES) == set(OBJECTIVES)
    counts = {}
    for name, recipe in RECIPES.items():
        settings = _settings(recipe, 1, tmp_path, tmp_path / name)
        config: Any = load_config(recipe.config, recipe.file, settings)
        assert Path(recipe.file).stem in CURVES
        if isinstance(config, GRPOConfig):
            counts[name] = _forwards(config)
        else:
            assert (config.max_steps, config.batch_size) == (150, 16)
    assert {c["images"] for c in counts.values()} == {512}
    trained = {name: c["training_forwards"] for name, c in counts.items()}
    assert trained == {FULL: 4096, "flow_grpo_window": 1024, "nft": 1024}
