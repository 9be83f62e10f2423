"""What a bar is, and the formulas that several bars share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Raw = Mapping[str, Any]
Formula = Callable[[Raw], float]


@dataclass(frozen=True)
class Bar:
    """One thing that is measured."""

    name: str
    unit: str
    meaning: str
    against: str
    """What the figure is held against: a limit, a prediction, another program in the same run."""
    formula: Formula
    needs: Literal["cpu", "h200"] = "cpu"
    """The least machine that can measure it."""

    @property
    def area(self) -> str:
        return self.name.partition(".")[0]


def pick(record: Raw, path: str) -> Any:
    """The value at dotted ``path`` in nested mappings."""
    value: Any = record
    for key in path.split("."):
        value = value[key]
    return value


def over_reports(combine: Callable[[list[float]], float], path: str, scale: float = 1) -> Formula:
    """``combine`` over the demo reports of several seeds, of the value at ``path``."""
    return lambda raw: scale * combine([float(pick(report, path)) for report in raw["reports"]])


def median_of(key: str) -> Formula:
    """The median of the repeated measurements under ``key``."""
    return lambda raw: float(statistics.median(raw[key]))


def percentile_of(key: str, percent: int) -> Formula:
    """The ``percent``-th percentile (nearest rank) of the measurements under ``key``."""

    def formula(raw: Raw) -> float:
        ordered = sorted(raw[key])
        rank = -(-len(ordered) * percent // 100)  # ceiling
        return float(ordered[max(rank, 1) - 1])

    return formula


def ratio_of(numerator: str, denominator: str) -> Formula:
    """Median of one list of measurements over the median of another from the same run."""
    return lambda raw: statistics.median(raw[numerator]) / statistics.median(raw[denominator])


def rate_of(count: str, seconds: str) -> Formula:
    """A count over the median of the seconds it took."""
    return lambda raw: raw[count] / statistics.median(raw[seconds])


def gib(key: str) -> Formula:
    """Bytes under ``key`` in GiB."""
    return lambda raw: raw[key] / 2**30
