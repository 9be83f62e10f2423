"""What a run holds at its highest, counted at real widths on tensors without data, and the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.config import DPOConfig, load_config
from align.plan import GIB, GPUS, make_plan, workload_of
from annotate.settings import configs_folder
from benchmarks.peaks import measure_peaks

LAYERS = 2


@pytest.mark.parametrize("rung", ["qwen_image_141gb_exact", "qwen_image_80gb"])
def test_a_run_holds_what_is_planned_and_never_a_second_copy_on_the_card(rung):
    config = load_config(DPOConfig, configs_folder() / f"dpo/{rung}.yaml")
    work = workload_of(config)
    work = replace(work, shape=replace(work.shape, num_layers=LAYERS))
    plan = make_plan(work, GPUS["h200-141gb"], 1)
    planned = plan.peak_bytes - plan.memory["workspace"]
    raw = measure_peaks(config, LAYERS)
    assert 0.9 * planned < raw["step"] < planned + GIB  # of the workspace's three
    weights = plan.memory["weights"] + plan.memory["frozen weights"]
    # The preflight's nudge keeps one copy, which lies in host memory.
    assert raw["nudge"] == pytest.approx(weights + plan.memory["weights"], rel=0.02)
    # Beside the states that are loaded there are the loaded ones, in their own types.
    assert raw["resume"] == pytest.approx(2 * raw["rest"] - weights, rel=0.02)
