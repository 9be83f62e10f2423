"""Watching a policy for what it does to please its reward and nobody else.

Every statistic here is one that no designer asks for: saturation, contrast, edges, grids, sameness.
A reward that secretly pays for one of them shows as a drift, while the reward itself only rises.
A drift is the mean change of a prompt's own pictures over the last rollouts, in standard deviations
*between images* of the base policy: it says how far the pictures have moved, not how many were
looked at, and which prompts a rollout happens to have does not matter. When it began is unknown, so
the last rollout is judged alone, the last two together, and so on: a generalised likelihood ratio
test over a window (Lai, "Sequential changepoint detection", 1995).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.Image import Image as PILImage

from rewards.base import RewardItem, Score, Scorer, ScoringError

__all__ = [
    "MAX_DRIFT",
    "HackingAlarm",
    "MonitorSettings",
    "RewardMonitor",
    "contact_sheet",
    "image_statistics",
]

Floats = NDArray[np.float64]
_Values = Sequence[tuple[str, float]]
"""(prompt, value) of each image"""
_ByPrompt = Mapping[str, Sequence[float]]


MAX_DRIFT = {
    "saturation": 0.1,
    "contrast": 0.2,
    "edge_density": 0.2,
    "colour_entropy": 0.6,
    "grid_8": 0.7,
    "grid_16": 0.5,
    "repetition": 0.1,
}
"""Image statistic -> limit of its drift less three standard errors. Less noise and cleaner edges
also move contrast, entropy and grids: each limit is twice the most that clean runs showed (honest
Flow-GRPO of the tiny pipeline, and drawn posters that do not change), up to the next 0.05."""


class HackingAlarm(ScoringError):
    """The policy is drifting; the message names each statistic, its drift and its limit."""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    baseline: int = 4
    """Rollouts at the start that say what the base policy draws; best one pass over the prompts."""
    window: int = 3
    """Most rollouts that are judged together, the last of the baseline among them at first. Drifts
    are judged over each number of rollouts up to it: a grave one shows in one, a slow one adds up.
    What has no error (diversity, equal groups, sigma) is judged over all of them."""
    num_errors: float = 3.0
    """Standard errors by which a drift must be beyond its limit: of few images, means differ by
    chance."""
    max_drift: Mapping[str, float] = field(default_factory=dict)
    """Of each image statistic, in standard deviations between baseline images; those not named
    keep the limit of `MAX_DRIFT`."""
    max_gold_drop: float = 0.25
    """Of the gold scorer's value while the reward has risen, in the same unit of its values."""
    min_prompts: int = 4
    """Prompts that the baseline had too, for a drift to be judged by these alone; with fewer, the
    mean of all prompts is judged, with its larger error."""
    min_diversity: float = 0.5
    """Of the distance between images of one prompt, as a share of the baseline's."""
    max_equal_groups: float = 0.9
    """Share of groups whose rewards are all equal."""
    max_sigma: float = 2.0
    """Of the scorer's own deviation, as a multiple of the baseline's: it no longer knows."""
    stop: bool = True
    """Raise `HackingAlarm`; otherwise `RewardMonitor.observe` only reports."""

    def __post_init__(self) -> None:
        if unknown := sorted(self.max_drift.keys() - MAX_DRIFT.keys()):
            raise ValueError(
                f"max_drift names {unknown}; the image statistics are {', '.join(MAX_DRIFT)}"
            )


@dataclass(frozen=True, slots=True)
class _Drift:
    """In standard deviations between baseline images."""

    value: float
    error: float
    """Standard error: of few images, a mean moves by chance."""

    def is_beyond(self, limit: float, num_errors: float) -> bool:
        """Whether the least that the drift can be is more than the limit."""
        return abs(self.value) - num_errors * self.error > limit


@dataclass
class _Rollout:
    """What was measured on one rollout, or on a few."""

    images: dict[str, list[tuple[str, float]]]
    """statistic -> (prompt, value) of each image"""
    whole: dict[str, float]
    """statistics of a rollout as a whole"""

    @classmethod
    def together(cls, rollouts: Sequence[_Rollout]) -> _Rollout:
        images: dict[str, list[tuple[str, float]]] = defaultdict(list)
        whole: dict[str, list[float]] = defaultdict(list)
        for rollout in rollouts:
            for name, values in rollout.images.items():
                images[name].extend(values)
            for name, value in rollout.whole.items():
                whole[name].append(value)
        return cls(dict(images), {name: float(np.mean(of)) for name, of in whole.items()})

    def means(self) -> dict[str, float]:
        """Of every statistic."""
        return {
            name: float(np.mean([value for _, value in of])) for name, of in self.images.items()
        } | self.whole


@dataclass
class _Baseline:
    """Values of the first rollouts."""

    images: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """statistic -> prompt -> its images' values"""
    rollouts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, rollout: _Rollout) -> None:
        for name, values in rollout.images.items():
            for prompt, value in values:
                self.images[name][prompt].append(value)
        for name, value in rollout.whole.items():
            self.rollouts[name].append(value)

    def drift(self, name: str, now: _Values, min_prompts: int) -> _Drift | None:
        """Mean change of the prompts that are known; where they are too few, of the mean of all.

        None where even all prompts are too few. Two sets of other prompts differ by chance: the
        second estimate has the larger error, of the spread between prompts.
        """
        base = self.images[name]
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for prompt, value in now:
            by_prompt[prompt].append(value)
        if not base or len(by_prompt) < min_prompts:
            return None
        every = np.concatenate([np.asarray(values) for values in base.values()])
        # What hardly varies among base images may still vary a little by rounding.
        unit = max(every.std(), 0.02 * abs(every.mean()), 1e-6)
        known = {prompt: own for prompt, own in by_prompt.items() if prompt in base}
        if len(known) >= min_prompts:
            change, variance = _paired_change(known, base)
        else:
            change, variance = _unpaired_change(by_prompt, base)
        return _Drift(change / unit, float(np.sqrt(variance)) / unit)

    def ratio(self, now: float, name: str) -> float | None:
        """To the mean of all baseline values; None without any."""
        values = self.rollouts.get(name) or [
            value for own in self.images[name].values() for value in own
        ]
        return now / max(float(np.mean(values)), 1e-9) if values else None


class RewardMonitor:
    """Looks at each rollout of a run.

    Args:
        gold: a scorer that never trains the policy and sees with other eyes than the one that does.
    """

    def __init__(self, settings: MonitorSettings | None = None, gold: Scorer | None = None):
        self.settings = settings or MonitorSettings()
        self.gold = gold
        self._baseline = _Baseline()
        self._seen = 0
        self._recent: list[_Rollout] = []
        self._path: Path | None = None

    def keep_baseline(self, path: Path) -> None:
        """Keep there what later rollouts are judged by, and take it up if a run was interrupted.

        A run that goes on would otherwise measure drifts from a policy that has drifted already.
        """
        self._path = path
        if path.is_file():
            tree = json.loads(path.read_text(encoding="utf-8"))
            for name, prompts in tree["images"].items():
                self._baseline.images[name].update(prompts)
            self._baseline.rollouts.update(tree["rollouts"])
            self._seen = tree["seen"]
            self._recent = [_Rollout(**rollout) for rollout in tree["recent"]]

    def observe(
        self, items: Sequence[RewardItem], scores: Sequence[Score | None]
    ) -> dict[str, float]:
        """Statistics of one rollout, named ``monitor/...``; items need images.

        Raises:
            HackingAlarm: the last rollouts are beyond a limit, and ``stop`` is set.
            ValueError: an item has no image.
        """
        rollout = _Rollout(self._per_image(items, scores), _per_rollout(items, scores))
        figures = {f"monitor/{name}": value for name, value in rollout.means().items()}
        self._seen += 1
        self._recent = [*self._recent, rollout][-self.settings.window :]
        if self._seen <= self.settings.baseline:
            self._baseline.add(rollout)
            self._write()
            return figures
        self._write()
        together = [_Rollout.together(self._recent[-n:]) for n in range(1, len(self._recent) + 1)]
        drifts = [self._drifts(rollouts) for rollouts in together]
        figures |= {f"monitor/{name}/drift": drift.value for name, drift in drifts[-1].items()}
        alarms = self._beyond_ratios(together[-1].means())
        for over_last in drifts:
            alarms |= self._beyond_drifts(over_last)
        figures["monitor/alarms"] = float(len(alarms))
        if alarms and self.settings.stop:
            raise HackingAlarm(f"rollout {self._seen}: " + "; ".join(alarms.values()))
        return figures

    def _write(self) -> None:
        if self._path is not None:
            base = self._baseline
            tree = {
                "seen": self._seen,
                "images": base.images,
                "rollouts": base.rollouts,
                "recent": [asdict(rollout) for rollout in self._recent],
            }
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(tree), encoding="utf-8")
            temporary.replace(self._path)

    def _per_image(
        self, items: Sequence[RewardItem], scores: Sequence[Score | None]
    ) -> dict[str, list[tuple[str, float]]]:
        found: dict[str, list[tuple[str, float]]] = defaultdict(list)
        judged = self.gold.score(items) if self.gold is not None else [None] * len(items)
        for item, score, gold in zip(items, scores, judged, strict=True):
            if item.image is None:
                raise ValueError(f"the monitor needs images, sample {item.sample_id!r} has none")
            values: dict[str, float | None] = dict(image_statistics(item.image))
            values["reward"] = score.value if score else None
            values["sigma"] = score.sigma if score else None
            values["gold"] = gold.value if gold else None
            for name, value in values.items():
                if value is not None:
                    found[name].append((item.prompt, value))
        return dict(found)

    def _drifts(self, rollout: _Rollout) -> dict[str, _Drift]:
        """Of every statistic that the baseline has of enough prompts."""
        return {
            name: drift
            for name, values in rollout.images.items()
            if (drift := self._baseline.drift(name, values, self.settings.min_prompts)) is not None
        }

    def _beyond_drifts(self, drifts: Mapping[str, _Drift]) -> dict[str, str]:
        """Which drifts are beyond their limits, and how to say so."""
        limits = self.settings
        found: dict[str, str] = {}
        for name, limit in (MAX_DRIFT | dict(limits.max_drift)).items():
            drift = drifts.get(name)
            if drift is not None and drift.is_beyond(limit, limits.num_errors):
                found[name] = f"{name} has drifted by {drift.value:+.2f} deviations of base "
                found[name] += f"images, at most {limit:g}"
        gold, reward = drifts.get("gold"), drifts.get("reward")
        if (
            gold
            and reward
            and gold.value < 0 < reward.value
            and gold.is_beyond(limits.max_gold_drop, limits.num_errors)
        ):
            found["gold"] = f"the gold scorer has fallen by {-gold.value:.2f} deviations while "
            found["gold"] += f"the reward rose by {reward.value:.2f}, "
            found["gold"] += f"at most {limits.max_gold_drop:g}"
        return found

    def _beyond_ratios(self, means: Mapping[str, float]) -> dict[str, str]:
        """Which means of rollouts are beyond their limits, and how to say so."""
        limits, base = self.settings, self._baseline
        found: dict[str, str] = {}
        ratio = base.ratio(means["sigma"], "sigma") if "sigma" in means else None
        if ratio is not None and ratio > limits.max_sigma:
            found["sigma"] = f"the scorer's deviation is {ratio:.2f} times the baseline's, "
            found["sigma"] += f"at most {limits.max_sigma:g}"
        spread = means.get("diversity")
        ratio = base.ratio(spread, "diversity") if spread is not None else None
        if ratio is not None and ratio < limits.min_diversity:
            found["diversity"] = f"images of one prompt differ {ratio:.2f} times as much as in "
            found["diversity"] += f"the baseline, at least {limits.min_diversity:g}"
        equal = means.get("equal_groups", 0.0)
        if equal > limits.max_equal_groups:
            found["equal_groups"] = f"all rewards are equal in {equal:.0%} of the groups, at most "
            found["equal_groups"] += f"{limits.max_equal_groups:.0%}"
        return found


def image_statistics(image: PILImage) -> dict[str, float]:
    """Statistics of one image, none of which makes a picture better by itself.

    - ``saturation``: mean of HSV's S, in [0, 1]. ``contrast``: deviation of luma, in [0, 1].
    - ``edge_density``: share of pixels with a luma step above 0.1 to a neighbour.
    - ``colour_entropy``: of the 4-bit RGB histogram, in bits.
    - ``grid_8``, ``grid_16``: how much stronger luma steps are at one phase of that period than at
      the median one, over the mean step: block edges and the patterns of patch models.
    - ``repetition``: largest correlation of the luma with itself shifted by an eighth to a half of
      the image: pictures made of copies.
    """
    rgb = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    across, down = np.abs(np.diff(luma, axis=1)), np.abs(np.diff(luma, axis=0))
    edges = (across[:-1] > 0.1) | (down[:, :-1] > 0.1)
    return {
        "saturation": float(((high - low) / np.maximum(high, 1e-6)).mean()),
        "contrast": float(luma.std()),
        "edge_density": float(edges.mean()),
        "colour_entropy": _entropy(rgb),
        "grid_8": max(_grid(across.mean(axis=0), 8), _grid(down.mean(axis=1), 8)),
        "grid_16": max(_grid(across.mean(axis=0), 16), _grid(down.mean(axis=1), 16)),
        "repetition": _repetition(luma),
    }


def contact_sheet(
    images: Sequence[PILImage], rewards: Sequence[float], columns: int = 4, side: int = 192
) -> PILImage:
    """The images by reward, highest first, each with its reward: what is the policy paid for?"""
    order = sorted(range(len(images)), key=lambda index: -rewards[index])
    rows = -(-len(order) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(order):
        left, top = place % columns * side, place // columns * (side + 16)
        image = images[index].convert("RGB")
        image.thumbnail((side - 4, side - 4))
        sheet.paste(image, (left + 2, top + 2))
        draw.text((left + 4, top + side), f"{rewards[index]:.3f}", fill="black")
    return sheet


def _per_rollout(items: Sequence[RewardItem], scores: Sequence[Score | None]) -> dict[str, float]:
    """Diversity within prompts, and the share of groups with nothing to learn from."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.group_id].append(index)
    small = [
        np.asarray(item.image.convert("RGB").resize((16, 16)), dtype=np.float64) / 255.0
        for item in items
        if item.image is not None
    ]
    distances, equal = [], []
    for members in groups.values():
        own = np.stack([small[index].ravel() for index in members])
        upper = np.triu_indices(len(own), k=1)
        gaps = np.sqrt(np.square(own[:, None] - own[None]).mean(axis=2))
        distances.extend(gaps[upper])
        values = [s.value for index in members if (s := scores[index]) is not None]
        known = [value for value in values if value is not None]
        equal.append(len(known) < 2 or max(known) - min(known) < 1e-6)
    found = {"equal_groups": float(np.mean(equal))}
    return found | ({"diversity": float(np.mean(distances))} if distances else {})


def _paired_change(now: _ByPrompt, base: _ByPrompt) -> tuple[float, float]:
    """Mean change of an image against its prompt's base images, and the variance of that mean."""
    count = sum(map(len, now.values()))
    change = sum(len(own) * (np.mean(own) - np.mean(base[p])) for p, own in now.items())
    spread = sum(
        (len(own) / count) ** 2 * (1 / len(own) + 1 / len(base[p])) for p, own in now.items()
    )
    several = [np.asarray(values) for values in base.values() if len(values) > 1]
    if several:
        squares = sum(np.square(values - values.mean()).sum() for values in several)
        within = squares / sum(len(values) - 1 for values in several)
    else:
        within = np.concatenate([np.asarray(values) for values in base.values()]).var()
    return float(change / count), float(within * spread)


def _unpaired_change(now: _ByPrompt, base: _ByPrompt) -> tuple[float, float]:
    """Change of the mean over prompts, and its variance, of the base prompts' own means."""
    means = [np.array([np.mean(own) for own in of.values()]) for of in (now, base)]
    spread = means[1].var(ddof=1) if len(base) > 1 else np.inf
    variance = spread * (1 / len(now) + 1 / len(base))
    return float(means[0].mean() - means[1].mean()), float(variance)


def _entropy(rgb: Floats) -> float:
    cells = (np.minimum(rgb, 0.999) * 16).astype(np.int64)
    index = (cells[..., 0] * 16 + cells[..., 1]) * 16 + cells[..., 2]
    counts = np.unique(index, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _grid(steps: Floats, period: int) -> float:
    whole = len(steps) // period
    if whole < 2:
        return 0.0
    phases = steps[: whole * period].reshape(whole, period)
    # The median over the periods: one strong edge of the picture itself is no grid.
    typical = np.median(phases, axis=0)
    return float((typical.max() - np.median(typical)) / max(steps.mean(), 1e-4))


def _repetition(luma: Floats) -> float:
    centred = luma - luma.mean()
    power = np.abs(np.fft.rfft2(centred)) ** 2
    correlation = np.fft.irfft2(power, s=luma.shape)
    correlation /= max(correlation[0, 0], 1e-9)
    height, width = luma.shape
    shifts = correlation[height // 8 : height // 2 + 1, width // 8 : width // 2 + 1]
    return float(shifts.max())
