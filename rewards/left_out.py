"""Leave one designer out: does a reward model know the taste of somebody it never met?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from annotate.settings import dump_config, parse_config
from rewards.config import RewardTrainConfig
from rewards.folder import FEATURES, write_json
from rewards.judgements import divide
from rewards.train import open_snapshot, train_reward

__all__ = ["DESIGNERS_FILE", "leave_each_out"]

DESIGNERS_FILE = "designers.json"

MEASURES = (
    "accuracy", "accuracy_low", "accuracy_high", "ceiling", "ceiling_gap", "ceiling_gap_low",
    "ceiling_gap_high", "num_pairs",
)  # fmt: skip
"""Of the model against the picks of whom it never met, beside the other designers against them."""


def leave_each_out(
    config: RewardTrainConfig, only: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Train once for each designer without their picks, and measure on their held-out ones.

    Runs lie in ``config.output_dir/without-NAME`` and share one feature cache; an interrupted one
    is continued.

    Args:
        only: pseudonyms; empty takes every designer with both training and held-out picks.

    Returns:
        pseudonym -> `MEASURES`. Also written to `DESIGNERS_FILE`.

    Raises:
        ValueError: a designer has no picks to leave out or to measure on.
    """
    import yaml

    division = divide(
        open_snapshot(config), config.held_out, config.development_fraction, config.seed
    )
    learned, measured = (
        {j.annotator for candidates in part for j in candidates.judgements}
        for part in (division.train, division.held_out)
    )
    names = sorted(only or learned & measured)
    unknown = [name for name in names if name not in learned & measured]
    if unknown or not names:
        both = ", ".join(sorted(learned & measured)) or "nobody"
        raise ValueError(
            f"to leave out {', '.join(unknown) or 'a designer'} takes picks of theirs on training "
            f"prompts and on held-out ones; such have {both}"
        )
    settings = yaml.safe_load(dump_config(config))
    cache = config.cache_dir or config.output_dir / FEATURES
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        own = {
            "leave_out": [*config.leave_out, name],
            "output_dir": str(config.output_dir / f"without-{name}"),
            "cache_dir": str(cache),
        }
        report = train_reward(parse_config(RewardTrainConfig, {**settings, **own})).report
        found[name] = {key: report["designers"][name][key] for key in MEASURES}
    write_json(config.output_dir / DESIGNERS_FILE, found)
    return found
