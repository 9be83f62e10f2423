"""The bars of the objectives on the poster world; `benchmarks.objectives` measures them."""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks.formulas import Bar, Formula, Raw

__all__ = ["ALIGN", "OBJECTIVES", "cost_table", "gain_interval"]

OBJECTIVES = (
    "sft",
    "dpo",
    "dpo_anchor",
    "plackett_luce",
    "flow_grpo_window",
    "nft",
    "flow_grpo_full",
)
NUM_SEEDS = 3
DRAWS = 2000
"""Bootstrap draws behind an interval."""


def _readings(raw: Raw, objective: str) -> list[list[float]]:
    """The ruler's mean of each test prompt, a row for each seed.

    Raises:
        ValueError: not every seed has finished.
    """
    rows = [run["by_prompt"] for run in raw["runs"] if run["objective"] == objective]
    if len(rows) != NUM_SEEDS:
        raise ValueError(f"{objective} has {len(rows)} seeds, expected {NUM_SEEDS}")
    return rows


def gain_interval(raw: Raw, objective: str) -> tuple[float, float, float]:
    """Relative gain over the SFT model in %, and its 95 % interval.

    Training seeds and test prompts are both drawn again in each of the bootstrap's samples.
    """
    models = np.array(_readings(raw, objective))
    start = np.array(raw["start"]["by_prompt"])
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(DRAWS):
        seeds = rng.integers(0, len(models), len(models))
        prompts = rng.integers(0, len(start), len(start))
        gains.append(models[seeds][:, prompts].mean() / start[prompts].mean() - 1)
    low, high = np.percentile(gains, [2.5, 97.5])
    return 100 * (models.mean() / start.mean() - 1), 100 * float(low), 100 * float(high)


def _end(objective: str, place: int) -> Formula:
    return lambda raw: float(gain_interval(raw, objective)[place])


def forwards_to_gain(raw: Raw, objective: str) -> float:
    """Training forwards over those of the full trajectory; at least 0.9 of its gain is needed.

    Raises:
        ValueError: the gain was not reached, or the full trajectory gained nothing.
    """
    gain, full = (gain_interval(raw, name)[0] for name in (objective, "flow_grpo_full"))
    if full <= 0 or gain < 0.9 * full:
        raise ValueError(f"{objective} gained {gain:.2f} %, full-trajectory Flow-GRPO {full:.2f} %")
    forwards = {
        name: statistics.fmean(
            run["training_forwards"] for run in raw["runs"] if run["objective"] == name
        )
        for name in (objective, "flow_grpo_full")
    }
    return forwards[objective] / forwards["flow_grpo_full"]


def cost_table(raw: Raw) -> str:
    """What each objective gained and what its run took: a Markdown table, means of the seeds."""
    head = ("objective", "gain, %", "images drawn", "rollout forwards", "training forwards")
    rows = [f"| {' | '.join((*head, 'CPU s', 'wall s'))} |", "|---|---|---|---|---|---|---|"]
    for name in OBJECTIVES:
        runs = [run for run in raw["runs"] if run["objective"] == name]
        gain, low, high = gain_interval(raw, name)

        def mean(key: str, runs: list[Raw] = runs) -> str:
            if key not in runs[0]:
                return ""
            return f"{statistics.fmean(run[key] for run in runs):.0f}"

        keys = ("images", "rollout_forwards", "training_forwards", "cpu_seconds", "wall_seconds")
        cells = [f"`{name}`", f"{gain:.1f} [{low:.1f}, {high:.1f}]", *map(mean, keys)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _bars(name: str) -> tuple[Bar, ...]:
    return (
        Bar(
            f"align.gain_over_sft.{name}",
            "%",
            f"relative gain of the three criteria's mean by the ruler, {name}; mean of three seeds",
            "the SFT model it starts from",
            _end(name, 0),
        ),
        Bar(
            f"align.gain_over_sft_low.{name}",
            "%",
            "lower end of its 95 % interval, over seeds and test prompts",
            "above 0",
            _end(name, 1),
        ),
        Bar(
            f"align.gain_over_sft_high.{name}",
            "%",
            "upper end of that interval",
            "-",
            _end(name, 2),
        ),
    )


ALIGN = (
    *(bar for name in OBJECTIVES for bar in _bars(name)),
    *(
        Bar(
            f"align.forwards_to_grpo_gain.{name}",
            "share",
            f"training forwards of {name}, where it gains at least 0.9 of full-trajectory "
            "Flow-GRPO's gain from as many images; no line where it does not",
            "full-trajectory Flow-GRPO's training forwards: at most 0.25",
            lambda raw, n=name: forwards_to_gain(raw, n),
        )
        for name in ("flow_grpo_window", "nft")
    ),
)
