"""How good a reward model is on held-out picks, beside the designers themselves; and the gate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from annotate.records import Snapshot, Split
from rewards.folder import REPORT_FILE, TRAINED_ON_FILE, WEIGHTS_FILE, file_sha256, read_json
from rewards.judgements import CandidateSet, candidate_sets
from rewards.metrics import brier_score, calibration
from rewards.slices import ranking_quality, slice_accuracy
from rewards.splits import LeakError, check_disjoint, prompt_digest

if TYPE_CHECKING:
    from rewards.models.features import FeatureCache
    from rewards.scorers.preference import PreferenceScorer

__all__ = [
    "ScoredPair",
    "agreement_pairs",
    "build_report",
    "cluster_bootstrap",
    "evaluate_model",
    "fit_temperature",
    "negative_log_likelihood",
    "read_report",
    "require_accuracy",
    "scored_pairs",
]

NUM_DRAWS = 2000

Scores = Mapping[str, Mapping[str, float]]
"""candidate id -> question -> score"""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One implied comparison of a pick, and the model's margin for it."""

    question: str
    prompt_id: str
    set_index: int
    annotator: str
    better: int
    worse: int
    margin: float
    """r(better) - r(worse) in log-odds: positive when the model agrees."""

    @property
    def agreement(self) -> float:
        """1 when the model agrees with the annotator, 0 when not, a half when it cannot tell."""
        return 0.5 + 0.5 * float(np.sign(self.margin))


def scored_pairs(sets: Sequence[CandidateSet], scores: Scores) -> list[ScoredPair]:
    """Every comparison that the picks imply: best over all, all others over the worst."""
    pairs: list[ScoredPair] = []
    for index, candidates in enumerate(sets):
        ids = candidates.candidate_ids
        rows = [scores[candidate_id] for candidate_id in ids]
        for judgement in candidates.judgements:
            question = judgement.question.value
            for better, worse in judgement.pairs(len(ids)):
                if question in rows[better]:
                    margin = rows[better][question] - rows[worse][question]
                    pairs.append(
                        ScoredPair(
                            question,
                            candidates.prompt.id,
                            index,
                            judgement.annotator,
                            better,
                            worse,
                            margin,
                        )
                    )
    return pairs


def agreement_pairs(pairs: Iterable[ScoredPair]) -> list[tuple[ScoredPair, float]]:
    """Leave one annotator out: each pair that another annotator decided too, and whether alike.

    Returns:
        (pair, 1.0 or 0.0) for each pair and each *other* annotator who was asked the same question
        of the same candidates and whose picks order the same two.
    """
    verdicts: dict[tuple[int, str], dict[tuple[int, int], list[ScoredPair]]]
    verdicts = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        key = (min(pair.better, pair.worse), max(pair.better, pair.worse))
        verdicts[pair.set_index, pair.question][key].append(pair)
    return [
        (pair, float(pair.better == other.better))
        for of_set in verdicts.values()
        for same in of_set.values()
        for pair in same
        for other in same
        if other.annotator != pair.annotator
    ]


def cluster_bootstrap(
    clusters: Sequence[str],
    groups: Sequence[str],
    values: Sequence[float],
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> tuple[float, float | None, float | None]:
    """Mean over groups of each group's mean value, with a 95 % percentile interval.

    Whole clusters (prompts) are drawn with replacement: pairs of one prompt are not independent.

    Returns:
        (estimate, low, high); low and high are None for a single cluster, whose draws are all
        alike.
    """
    cluster_index = np.unique(clusters, return_inverse=True)[1]
    group_names, group_index = np.unique(groups, return_inverse=True)
    shape = (int(cluster_index.max()) + 1, len(group_names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (cluster_index, group_index), np.asarray(values, dtype=np.float64))
    np.add.at(counts, (cluster_index, group_index), 1.0)
    estimate = float((sums.sum(0) / counts.sum(0)).mean())
    if shape[0] == 1:
        return estimate, None, None
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(shape[0], np.full(shape[0], 1.0 / shape[0]), size=num_draws)
    drawn_counts = draws @ counts
    # A group that no drawn prompt has is left out of that draw's mean.
    means = np.divide(
        draws @ sums, drawn_counts, out=np.full(drawn_counts.shape, np.nan), where=drawn_counts > 0
    )
    low, high = np.percentile(np.nanmean(means, axis=1), [2.5, 97.5])
    return estimate, float(low), float(high)


def negative_log_likelihood(margins: NDArray[np.float64], temperature: float = 1.0) -> float:
    """Mean of -log s(d / T), in nats; log 2 is a coin."""
    return float(np.logaddexp(0.0, -margins / temperature).mean())


def fit_temperature(margins: NDArray[np.float64]) -> float:
    """T > 0 that minimises the negative log likelihood of s(d / T), within [0.05, 20].

    The likelihood is convex in 1 / T, so that bisecting its slope finds the minimum.
    """
    low, high = 1 / 20, 1 / 0.05
    for _ in range(60):
        middle = (low + high) / 2
        slope = -(margins / (1.0 + np.exp(np.clip(margins * middle, -500, 500)))).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(2 / (low + high))


def build_report(
    sets: Sequence[CandidateSet],
    scores: Scores,
    criteria: Sequence[str],
    seed: int = 0,
    snapshot: Snapshot | None = None,
) -> dict[str, Any]:
    """Held-out accuracy with its interval, the designers' ceiling and the calibration.

    ``accuracy`` and its interval are the mean over ``criteria`` of the pairwise accuracy;
    ``ceiling`` is that of one designer's picks against another's on the same task, and
    ``accuracy_on_ceiling_pairs`` the model's on exactly those pairs. ``ece`` is to be held against
    ``ece_expected``, what a perfectly calibrated model would show on as many pairs. The snapshot
    adds the slice of pairs drawn by one model and by two.

    Raises:
        ValueError: no held-out pick asks for any of the criteria.
    """
    pairs = scored_pairs(sets, scores)
    asked = [name for name in criteria if any(pair.question == name for pair in pairs)]
    if not asked:
        found = sorted({pair.question for pair in pairs})
        raise ValueError(
            f"held-out picks ask for {found or 'nothing'}, expected one of {list(criteria)}"
        )
    questions = list(dict.fromkeys([*asked, *sorted({pair.question for pair in pairs})]))
    details = {
        name: {
            **_measure([pair for pair in pairs if pair.question == name], seed),
            **ranking_quality(sets, scores, name),
        }
        for name in questions
    }
    summary = _measure([pair for pair in pairs if pair.question in asked], seed)
    return {
        "accuracy": summary["accuracy"],
        "ci_low": summary["ci_low"],
        "ci_high": summary["ci_high"],
        "ceiling": summary["ceiling"],
        "accuracy_on_ceiling_pairs": summary["accuracy_on_ceiling_pairs"],
        "ceiling_gap": summary["ceiling_gap"],
        "ceiling_gap_low": summary["ceiling_gap_low"],
        "ceiling_gap_high": summary["ceiling_gap_high"],
        "ece": summary["ece"],
        "ece_expected": summary["ece_expected"],
        "reliability": summary["reliability"],
        "criteria": details,
        "slices": slice_accuracy([p for p in pairs if p.question in asked], sets, snapshot),
        "missing_criteria": [name for name in criteria if name not in asked],
        "head_correlation": _head_correlation(sets, scores, asked),
        "num_prompts": len({candidates.prompt.id for candidates in sets}),
        "num_tasks": len({j.task_id for candidates in sets for j in candidates.judgements}),
        "num_picks": sum(len(candidates.judgements) for candidates in sets),
        "num_pairs": len(pairs),
    }


def _measure(pairs: Sequence[ScoredPair], seed: int) -> dict[str, Any]:
    accuracy, low, high = cluster_bootstrap(
        [pair.prompt_id for pair in pairs],
        [pair.question for pair in pairs],
        [pair.agreement for pair in pairs],
        seed,
    )
    shared = agreement_pairs(pairs)
    designers, model, gap = _beside_designers(shared, seed)
    margins = np.array([pair.margin for pair in pairs])
    found = calibration(margins)
    return {
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "ceiling": designers[0],
        "ceiling_low": designers[1],
        "ceiling_high": designers[2],
        "accuracy_on_ceiling_pairs": model[0],
        "ceiling_gap": gap[0],
        "ceiling_gap_low": gap[1],
        "ceiling_gap_high": gap[2],
        "nll": negative_log_likelihood(margins),
        "brier": brier_score(margins),
        "ece": found.ece,
        "ece_expected": found.expected,
        "ece_high": found.high,
        "reliability": [list(bin) for bin in found.bins],
        "num_pairs": len(pairs),
    }


_Bounds = tuple[float | None, float | None, float | None]


def _beside_designers(
    shared: Sequence[tuple[ScoredPair, float]], seed: int
) -> tuple[_Bounds, _Bounds, _Bounds]:
    """Designers' agreement, the model's on the same pairs, and the difference, with intervals."""
    if not shared:
        nothing = (None, None, None)
        return nothing, nothing, nothing
    prompts = [pair.prompt_id for pair, _ in shared]
    groups = [pair.question for pair, _ in shared]

    def bounds(values: list[float]) -> _Bounds:
        return cluster_bootstrap(prompts, groups, values, seed)

    return (
        bounds([alike for _, alike in shared]),
        bounds([pair.agreement for pair, _ in shared]),
        # Both meet the same prompts in every draw: the interval is that of the difference.
        bounds([pair.agreement - alike for pair, alike in shared]),
    )


def _head_correlation(
    sets: Sequence[CandidateSet], scores: Scores, criteria: Sequence[str]
) -> dict[str, float]:
    """Correlation of two heads within prompts; near 1 both measure one impression."""
    centred: dict[str, list[float]] = {name: [] for name in criteria}
    for candidates in sets:
        rows = [scores[candidate_id] for candidate_id in candidates.candidate_ids]
        for name in criteria:
            column = np.array([row[name] for row in rows])
            centred[name].extend(column - column.mean())
    found: dict[str, float] = {}
    for index, first in enumerate(criteria):
        for second in criteria[index + 1 :]:
            x, y = np.array(centred[first]), np.array(centred[second])
            spread = np.sqrt((x @ x) * (y @ y))
            found[f"{first}/{second}"] = float(x @ y / spread) if spread > 0 else 0.0
    return found


def evaluate_model(
    folder: str | Path,
    scorer: PreferenceScorer,
    snapshot: Snapshot,
    split: Split,
    cache: FeatureCache | None = None,
) -> dict[str, Any]:
    """Measure the reward model in ``folder`` on one split of any snapshot; see `build_report`.

    Raises:
        LeakError: a prompt is in two splits, or shaped the model in training.
        ValueError: the split has no picks on the model's criteria.
    """
    from rewards.models.features import extract_features, own_features, own_prompts

    check_disjoint(snapshot.prompts)
    judged = candidate_sets(snapshot)
    sets = [s for s in judged if s.prompt.split == split]
    if not sets:
        others = sorted({s.prompt.split.value for s in judged})
        raise ValueError(
            f"split {split.value!r} of snapshot {snapshot.digest} has no picks; it has some in "
            f"{others}"
        )
    trained_on = set(read_json(Path(folder) / TRAINED_ON_FILE))
    for candidates in sets:
        if prompt_digest(candidates.prompt.text) in trained_on:
            raise LeakError(
                f"prompt {candidates.prompt.text!r} is in split {split.value!r} of this snapshot, "
                f"but the reward model {folder} was trained on it"
            )
    bank = extract_features(snapshot, own_prompts(sets), scorer.encoder, cache)
    scores = scorer.score_candidates(own_features(sets, bank))
    return {
        **build_report(sets, scores, scorer.model.config.criteria, snapshot=snapshot),
        "held_out": split.value,
        "snapshot_digest": snapshot.digest,
        "base_sha256": scorer.encoder.identity["base_sha256"],
        "model_sha256": file_sha256(Path(folder) / WEIGHTS_FILE),
    }


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a model folder.

    Raises:
        FileNotFoundError: there is none; the message says how it is made.
        ValueError: the report was made for other weights than those in the folder.
    """
    path = Path(folder) / REPORT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {REPORT_FILE} in {folder}: a reward model's folder is made by "
            "`winsome reward train CONFIG`"
        )
    report = read_json(path)
    weights = file_sha256(Path(folder) / WEIGHTS_FILE)
    if report.get("model_sha256") != weights:
        raise ValueError(
            f"{path} reports on weights {report.get('model_sha256')}, "
            f"but the folder holds {weights}"
        )
    return report


def require_accuracy(folder: str | Path, minimum: float) -> dict[str, Any]:
    """The gate before reinforcement learning: return the report, or refuse the reward model.

    Raises:
        ValueError: held-out accuracy is below ``minimum``, or the report is not of these weights.
        FileNotFoundError: the folder has no report.
    """
    if not 0.0 <= minimum <= 1.0:
        raise ValueError(f"the minimum accuracy must lie between 0 and 1, got {minimum}")
    report = read_report(Path(folder))
    accuracy = report["accuracy"]
    if accuracy < minimum:
        raise ValueError(
            f"reward model {folder} is refused: held-out accuracy is {accuracy:.3f} "
            f"({describe_interval(report)}, designers "
            f"{_percent(report['ceiling'])}), expected at least {minimum:.3f}"
        )
    return report


def describe_interval(figures: Mapping[str, Any]) -> str:
    """The interval in words; of a single prompt there is none."""
    if figures["ci_low"] is None:
        return "no interval: one prompt"
    return f"95 % interval {figures['ci_low']:.3f} to {figures['ci_high']:.3f}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
