"""A learning curve: would more picks make the reward model better?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from annotate.settings import dump_config, parse_config
from rewards.config import RewardTrainConfig
from rewards.folder import FEATURES, write_json
from rewards.train import train_reward

__all__ = ["CURVE_FILE", "learning_curve"]

CURVE_FILE = "curve.json"


def learning_curve(config: RewardTrainConfig, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Train once for each share of the training prompts, all measured on the same held-out picks.

    Each smaller share lies within the larger ones. Runs lie in ``config.output_dir/share-...`` and
    share one feature cache; an interrupted one is continued.

    Returns:
        For each share its ``num_prompts`` and ``num_picks``, ``accuracy`` with its interval, and
        each criterion's accuracy. Also written to `CURVE_FILE`.

    Raises:
        ValueError: a share is not in (0, 1].
    """
    import yaml

    settings = yaml.safe_load(dump_config(config))
    cache = config.cache_dir or config.output_dir / FEATURES
    points: list[dict[str, Any]] = []
    for share in sorted(set(shares)):
        own = {
            "train_share": share,
            "output_dir": str(config.output_dir / f"share-{share:g}"),
            "cache_dir": str(cache),
        }
        report = train_reward(parse_config(RewardTrainConfig, {**settings, **own})).report
        points.append(
            {
                "share": share,
                "num_prompts": report["trained_on"]["num_prompts"],
                "num_picks": report["trained_on"]["num_picks"],
                **{key: report[key] for key in ("accuracy", "ci_low", "ci_high", "ceiling")},
                "criteria": {name: of["accuracy"] for name, of in report["criteria"].items()},
            }
        )
    write_json(config.output_dir / CURVE_FILE, points)
    return points
