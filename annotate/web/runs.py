"""What a run folder shows to people: its curves, its alarms, how its reward model is calibrated.

Everything is read from the folder that the store knows the run by; nothing is taken from the
request but names that are looked up.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from annotate.schema import Run

MAX_POINTS = 400
"""Points of one curve; more of them only slow the browser down."""
Curves = dict[str, list[tuple[int, float]]]

LOOKED_AT_MOST = ("loss", "reward", "rewards/accuracies", "kl")
CHARTS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss", "validation/loss"),
    "reward": ("reward", "monitor/reward"),
    "gold": ("monitor/gold", "samples/gold"),
    "reward_std": ("reward_std", "frac_reward_zero_std"),
    "held_out": ("*accuracies", "eval_accuracy", "eval_*_accuracy"),
    "errors": ("error/chosen", "error/rejected", "error/chosen_reference"),
    "held_out_errors": ("validation/error/chosen", "validation/error/rejected"),
    "margins": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "kl": ("kl",),
    "grad_norm": ("grad_norm",),
    "clip": ("clip_ratio", "clip_fraction"),
    "drift": ("monitor/*/drift",),
    "diversity": ("monitor/diversity",),
}
"""Chart -> patterns of the metrics that share it; their unit is the same."""


@dataclass(frozen=True)
class Alarm:
    """A sign that the policy pleases its reward and nobody else."""

    kind: str
    """``monitor``, ``stopped``, ``chosen`` or ``gold``."""
    step: int | None
    detail: str
    """What was measured, as it stands in the run folder."""


class Unreadable(list[str]):
    """What of a run folder could not be read, for people: a name in the folder, and where."""

    def note(self, path: Path, line: int | None = None) -> None:
        where = path.name if path.parent.parent.name != "samples" else "/".join(path.parts[-3:])
        text = where if line is None else f"{where}:{line}"
        if text not in self:
            self.append(text)


def parse(text: str | bytes) -> Any:
    """JSON whose numbers a page can draw; NaN and infinity are None.

    Raises:
        ValueError: it is no JSON, not UTF-8, nested too deep, or a number is beyond a float.
    """
    try:
        return json.loads(
            text, parse_int=_whole, parse_float=_real, parse_constant=lambda _name: None
        )
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 17 else _real(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"a number of {len(digits)} digits is beyond a float")
    return value


def read_curves(run: Run, unreadable: Unreadable | None = None) -> Curves:
    """Metric name -> (step, value) from the run folder's ``metrics.jsonl``.

    A run that has written nothing yet, or whose folder is gone, has no curves; a line that is
    being written just now is left out, and so is a broken one, which ``unreadable`` then names.
    """
    path = Path(run.folder) / "metrics.jsonl"
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    curves: Curves = defaultdict(list)
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            row = parse(line)
        except ValueError:
            if unreadable is not None and line.endswith(b"\n") and line.strip():
                unreadable.note(path, number)
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int):
            continue
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number and math.isfinite(value):
                curves[name].append((step, float(value)))
    return dict(curves)


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about `MAX_POINTS` of them; the last is always there: it is what is read off."""
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    return points[:-1:stride] + points[-1:]


def charts(curves: Curves) -> list[dict[str, Any]]:
    """The charts that these curves fill, in the order of `CHARTS`, then each other metric alone."""
    shown: set[str] = set()
    found = []
    for name, patterns in CHARTS.items():
        own = [c for p in patterns for c in sorted(curves) if fnmatchcase(c, p)]
        own = [metric for metric in dict.fromkeys(own) if metric not in shown]
        if own:
            found.append({"chart": name, "metrics": own})
            shown.update(own)
    rest = [{"chart": None, "metrics": [name]} for name in sorted(set(curves) - shown)]
    return [
        {**chart, "series": [{"name": m, "points": thinned(curves[m])} for m in chart["metrics"]]}
        for chart in found + rest
    ]


def curve_rows(curves: Curves) -> list[dict[str, Any]]:
    """Every point of every curve: a row for each step, a column for each metric."""
    by_step: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, points in curves.items():
        for step, value in points:
            by_step[step][name] = value
    names = sorted(curves)
    return [
        {"step": step, **{name: by_step[step].get(name) for name in names}}
        for step in sorted(by_step)
    ]


def alarms(run: Run, curves: Curves, unreadable: Unreadable | None = None) -> list[Alarm]:
    """What the run's monitors and objectives found, and whether gold fell while reward rose."""
    found = []
    info = _read(Path(run.folder) / "run.json", unreadable)
    stopped = info.get("hacking_alarm")
    if isinstance(stopped, str):
        found.append(Alarm("stopped", info.get("steps"), stopped))
    raised = [step for step, count in curves.get("monitor/alarms", []) if count > 0]
    if raised:
        drifts = {
            name.removeprefix("monitor/").removesuffix("/drift"): value
            for name, points in curves.items()
            if fnmatchcase(name, "monitor/*/drift")
            for step, value in points
            if step == raised[0]
        }
        most = sorted(drifts.items(), key=lambda item: -abs(item[1]))[:3]
        found.append(Alarm("monitor", raised[0], ", ".join(f"{n} {v:+.2f}" for n, v in most)))
    chosen = info.get("chosen_alarm")
    if isinstance(chosen, dict) and isinstance(chosen.get("rise"), int | float):
        found.append(Alarm("chosen", chosen.get("step"), f"{chosen['rise']:+.1%}"))
    rise, fall = _change(curves.get("reward", [])), _change(curves.get("monitor/gold", []))
    if rise is not None and fall is not None and rise > 0 > fall:
        found.append(Alarm("gold", None, f"reward {rise:+.3g}, gold {fall:+.3g}"))
    return found


def is_watched(curves: Curves) -> bool:
    """Whether a monitor, or an objective's own alarm, looked at this run at all."""
    return any(name.startswith("monitor/") or name == "error/chosen_delta" for name in curves)


def _change(points: list[tuple[int, float]]) -> float | None:
    """Mean of the last fifth less that of the first; None for fewer than ten points."""
    part = len(points) // 5
    if part < 2:
        return None
    values = [value for _, value in points]
    return sum(values[-part:]) / part - sum(values[:part]) / part


def reliability(run: Run, unreadable: Unreadable | None = None) -> dict[str, Any] | None:
    """The calibration of the run's reward model: its own report, or that of the one it trains on.

    Returns:
        ``bins`` as (confidence, accuracy, pairs), and what the report says of the whole; None
        where the run has no report.
    """
    folder = Path(run.folder)
    report = _read(folder / "report.json", unreadable)
    if not report:
        reward = _read(folder / "run.json", unreadable).get("reward")
        path = reward.get("path") if isinstance(reward, dict) else None
        if isinstance(path, str):
            report = _read(Path(path) / "report.json", unreadable)
    bins = report.get("reliability")
    if not isinstance(bins, list) or not bins or not all(map(_is_bin, bins)):
        return None
    names = ("accuracy", "ci_low", "ci_high", "ceiling", "ece", "ece_expected", "snapshot_digest")
    return {"bins": bins, **{name: report.get(name) for name in names}}


def _is_bin(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(isinstance(x, int | float) for x in row)


def _read(path: Path, unreadable: Unreadable | None) -> dict[str, Any]:
    """A JSON object; empty where there is none, or none that can be read."""
    try:
        tree = parse(path.read_bytes())
    except OSError:
        return {}
    except ValueError:
        if unreadable is not None:
            unreadable.note(path)
        return {}
    return tree if isinstance(tree, dict) else {}
