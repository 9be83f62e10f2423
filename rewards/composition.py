"""Several scorers as one reward.

Scores of different scorers have different zeros and units. Each is first put on a common scale, in
standard deviations of a *frozen* calibration set: a running normalisation would move while the
policy learns, and the same image would score differently from one step to the next.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from rewards.base import RewardItem, Score, Scorer, ScorerSpec

__all__ = [
    "Calibration",
    "CompositeScorer",
    "Gate",
    "Part",
    "SharedBackboneWarning",
    "calibrate",
    "warn_of_shared_backbones",
]

Rule = Literal["weighted_sum", "min", "gdpo"]


class SharedBackboneWarning(UserWarning):
    """A scorer that judges the run looks through the same network as one that trains it."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean and deviation of one scorer's values on a calibration set."""

    scorer: str
    version: str
    """Of the scorer: another version has another scale, and is refused."""
    mean: float
    std: float
    count: int

    def __post_init__(self) -> None:
        if not self.std > 0.0:
            raise ValueError(
                f"the {self.count} calibration scores of {self.scorer!r} are all {self.mean:g}: "
                "they set no scale"
            )

    def z(self, value: float) -> float:
        return (value - self.mean) / self.std

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def calibrate(scorer: Scorer, items: Sequence[RewardItem]) -> Calibration:
    """Measure a scorer's scale on items such as the base model's images of the training prompts.

    Items to which it does not apply are left out.

    Raises:
        ValueError: an item failed, fewer than two have a value, or all values are equal.
    """
    scores = scorer.score(items)
    for item, score in zip(items, scores, strict=True):
        if score.error is not None:
            raise ValueError(f"calibration item {item.sample_id!r} failed: {score.error}")
    values = [score.value for score in scores if score.value is not None]
    if len(values) < 2:
        raise ValueError(f"calibration needs at least 2 scores, got {len(values)}")
    spec = scorer.spec
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return Calibration(spec.name, spec.version, mean, std, len(values))


@dataclass(frozen=True, slots=True)
class Part:
    """One scorer in a composite."""

    scorer: Scorer
    calibration: Calibration
    weight: float = 1.0
    category_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight by ``metadata["category"]`` of the item, e.g. poster, icon; else ``weight``."""

    def __post_init__(self) -> None:
        spec = self.scorer.spec
        own = (self.calibration.scorer, self.calibration.version)
        if own != (spec.name, spec.version):
            raise ValueError(
                f"the calibration was made for scorer {own[0]!r} version {own[1]}, "
                f"this is {spec.name!r} version {spec.version}: calibrate again"
            )
        for name, weight in {"weight": self.weight, **self.category_weights}.items():
            if not weight >= 0.0:
                raise ValueError(
                    f"weights of {spec.name!r} must be at least 0, got {name} {weight}"
                )

    def weight_of(self, item: RewardItem) -> float:
        return self.category_weights.get(str(item.metadata.get("category", "")), self.weight)


@dataclass(frozen=True, slots=True)
class Gate:
    """Where a scorer's own value is below ``minimum``, the reward is at most ``cap``.

    "Text accuracy below a half, and nothing else can make up for it."
    """

    scorer: str
    minimum: float
    """On the scorer's own scale, not in deviations."""
    cap: float = -3.0
    """In deviations."""
    component: str | None = None
    """Read this component instead of the value."""


class CompositeScorer:
    """Calibrated scores of several scorers made one.

    - ``weighted_sum``: sum of weight * z over the sum of the weights that apply.
    - ``min``: the least z of the parts that have weight: no part can pay for another.
    - ``gdpo``: each part is normalised within its group before the sum (GDPO, arXiv 2601.05242):
      normalising the sum would map different combinations to one advantage. All samples of a group
      must come in one call.

    An item on which any part fails has that error. A part that does not apply to an item is left
    out of it; where none applies, nor does the composite. ``components`` are the parts' z, and
    ``truncated`` is that of the part that read least.
    """

    def __init__(
        self, parts: Sequence[Part], rule: Rule = "weighted_sum", gates: Sequence[Gate] = ()
    ):
        names = [part.scorer.spec.name for part in parts]
        if not parts or len(set(names)) != len(names):
            raise ValueError(f"a composite needs scorers of different names, got {names}")
        if rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
        for gate in gates:
            if gate.scorer not in names:
                raise ValueError(f"a gate reads scorer {gate.scorer!r}, the parts are {names}")
        self.parts, self.rule, self.gates = tuple(parts), rule, tuple(gates)
        settings = [
            [part.scorer.spec.name, part.scorer.spec.version, asdict(part.calibration),
             part.weight, sorted(part.category_weights.items())]
            for part in parts
        ]  # fmt: skip
        identity = json.dumps([settings, rule, [asdict(gate) for gate in gates]])
        self.spec = ScorerSpec(
            name="composite",
            version=hashlib.sha256(identity.encode()).hexdigest()[:16],
            components=tuple(names),
            needs=_needs(parts),
            groupwise=rule == "gdpo" or any(part.scorer.spec.groupwise for part in parts),
        )

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        columns = [_checked(part.scorer, items) for part in self.parts]
        rows = list(zip(*columns, strict=True))
        errors = [self._error(row) for row in rows]
        z = [self._z(row) if not error else {} for row, error in zip(rows, errors, strict=True)]
        terms = _within_groups(items, z) if self.rule == "gdpo" else z
        return [
            Score(None, error=error) if error else self._combine(item, row, own, of)
            for item, row, own, of, error in zip(items, rows, z, terms, errors, strict=True)
        ]

    def _error(self, row: Sequence[Score]) -> str | None:
        for part, score in zip(self.parts, row, strict=True):
            if score.error is not None:
                return f"{part.scorer.spec.name}: {score.error}"
        return None

    def _z(self, row: Sequence[Score]) -> dict[str, float]:
        return {
            part.scorer.spec.name: part.calibration.z(score.value)
            for part, score in zip(self.parts, row, strict=True)
            if score.value is not None
        }

    def _combine(
        self,
        item: RewardItem,
        row: Sequence[Score],
        z: Mapping[str, float],
        terms: Mapping[str, float],
    ) -> Score:
        weights = {part.scorer.spec.name: part.weight_of(item) for part in self.parts}
        weights = {name: weight for name, weight in weights.items() if name in terms and weight}
        truncated = max(score.truncated for score in row)
        if not weights:
            return Score(None, dict(z), truncated=truncated)
        if self.rule == "min":
            value = min(terms[name] for name in weights)
        else:
            total = sum(weight * terms[name] for name, weight in weights.items())
            value = total / sum(weights.values())
        for gate in self.gates:
            if self._is_shut(gate, row):
                value = min(value, gate.cap)
        return Score(value, dict(z), truncated=truncated)

    def _is_shut(self, gate: Gate, row: Sequence[Score]) -> bool:
        score = row[self.spec.components.index(gate.scorer)]
        read = score.value if gate.component is None else score.components.get(gate.component)
        return read is not None and read < gate.minimum


def warn_of_shared_backbones(training: Sequence[Scorer], evaluation: Sequence[Scorer]) -> None:
    """Warn where a scorer that judges shares its backbone with one that trains.

    What the policy learns to hide from the one is then hidden from the other, too.
    """
    learned = {scorer.spec.backbone: scorer.spec.name for scorer in training}
    for scorer in evaluation:
        backbone = scorer.spec.backbone
        if backbone and backbone in learned:
            warnings.warn(
                f"evaluation scorer {scorer.spec.name!r} shares the backbone {backbone!r} with "
                f"training scorer {learned[backbone]!r}: it cannot see what that one overlooks",
                SharedBackboneWarning,
                stacklevel=2,
            )


def _needs(parts: Sequence[Part]) -> frozenset[str]:
    """What every part can read: a part that reads either leaves the choice to the others."""
    common = frozenset.intersection(*(part.scorer.spec.needs for part in parts))
    if not common:
        needs = {part.scorer.spec.name: sorted(part.scorer.spec.needs) for part in parts}
        raise ValueError(f"the scorers of a composite read nothing in common: {needs}")
    return common


def _checked(scorer: Scorer, items: Sequence[RewardItem]) -> list[Score]:
    scores = scorer.score(items)
    if len(scores) != len(items):
        error = f"returned {len(scores)} scores for {len(items)} items"
        return [Score(None, error=error) for _ in items]
    return scores


def _within_groups(
    items: Sequence[RewardItem], z: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """Each part's z, standardised over the samples of its group that have it.

    A part that hardly varies within a group tells nothing about it and adds 0.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, (item, row) in enumerate(zip(items, z, strict=True)):
        for name in row:
            groups[item.group_id, name].append(index)
    terms: list[dict[str, float]] = [{} for _ in items]
    for (_, name), members in groups.items():
        values = _standardise([z[index][name] for index in members])
        for index, value in zip(members, values, strict=True):
            terms[index][name] = value
    return terms


def _standardise(values: Sequence[float], min_std: float = 1e-4) -> list[float]:
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / std if std > min_std else 0.0 for value in values]
