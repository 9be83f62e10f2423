"""Golden trajectories: ten steps of each objective on a small Qwen-Image, its losses and gradients.

``WRITE_GOLDEN=1 pytest tests/align/test_golden.py`` writes ``tests/data/golden_trajectories.json``
anew, for a change that is meant to change the numbers. test_distributed.py follows the same
numbers with two processes.
"""

from __future__ import annotations

import json
import os
from functools import cache

import pytest
from golden_cases import (
    CASES,
    GOLDEN,
    HAVE_STORED_ERRORS,
    assert_follows,
    live,
    make_policy,
    trajectory,
)

RECORDED = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


@cache
def plain(name: str) -> list[list[float]]:
    """All eight samples at once."""
    return trajectory(make_policy(), *CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_that_were_recorded(name):
    if os.environ.get("WRITE_GOLDEN"):
        RECORDED[name] = [[float(f"{value:.9g}") for value in row] for row in plain(name)]
        known = {case: RECORDED[case] for case in CASES if case in RECORDED}
        GOLDEN.write_text(json.dumps(known, indent=1) + "\n")
    assert_follows(plain(name), RECORDED[name])


@pytest.mark.parametrize("name", CASES)
def test_one_at_a_time_is_all_at_once(name):
    assert_follows(trajectory(make_policy(), *CASES[name], micro=1), RECORDED[name])


@pytest.mark.parametrize("name", CASES)
def test_recomputed_activations_change_not_a_bit(name):
    """Shapes, backend and threads are the same; the weights are those of a run without."""
    assert trajectory(make_policy(checkpointing=True), *CASES[name]) == plain(name)


@pytest.mark.parametrize("name", HAVE_STORED_ERRORS)
def test_a_live_reference_changes_not_a_bit(name):
    objective, make = CASES[name]
    assert trajectory(make_policy(), objective, live(make)) == plain(name)
