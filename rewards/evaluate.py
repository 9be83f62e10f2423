"""How good a reward model is on held-out picks, beside the designers themselves; and the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate.records import Snapshot, Split
from rewards.agreement import (
    Scores,
    by_designer,
    margins_and_outcomes,
    measure_pairs,
    scored_pairs,
)
from rewards.base import RewardItem, Scorer
from rewards.components import find_components
from rewards.folder import (
    PAGE_FILE,
    REPORT_FILE,
    TRAINED_ON_FILE,
    WEIGHTS_FILE,
    file_sha256,
    read_json,
    write_json,
)
from rewards.judgements import CandidateSet, candidate_sets
from rewards.metrics import fit_tie_threshold, tie_aware_accuracy
from rewards.report import write_page
from rewards.slices import ranking_quality, slice_accuracy
from rewards.splits import LeakError, check_disjoint, prompt_digest

if TYPE_CHECKING:
    from rewards.models.features import FeatureCache
    from rewards.scorers.preference import PreferenceScorer

__all__ = [
    "audit_model",
    "build_report",
    "describe_interval",
    "evaluate_model",
    "held_out_sets",
    "read_report",
    "register",
    "require_accuracy",
    "score_sets",
    "validation_thresholds",
]


def build_report(
    sets: Sequence[CandidateSet],
    scores: Scores,
    criteria: Sequence[str],
    seed: int = 0,
    snapshot: Snapshot | None = None,
    tie_thresholds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Held-out accuracy with its interval, the designers' ceiling and the calibration.

    ``accuracy`` and its interval are the mean over ``criteria`` of the pairwise accuracy;
    ``ceiling`` is that of one designer's picks against another's on the same task, and
    ``accuracy_on_ceiling_pairs`` the model's on exactly those pairs. ``ece`` is to be held against
    ``ece_expected``, what a perfectly calibrated model would show on as many pairs. The snapshot
    adds the slice of pairs drawn by one model and by two. ``accuracy_with_ties`` counts "all equal"
    too, by the margin below which a pair is called a tie (`validation_thresholds`).

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
            **measure_pairs([pair for pair in pairs if pair.question == name], seed),
            **ranking_quality(sets, scores, name),
            **_with_ties(sets, scores, name, (tie_thresholds or {}).get(name)),
        }
        for name in questions
    }
    summary = measure_pairs([pair for pair in pairs if pair.question in asked], seed)
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
        "designers": by_designer([p for p in pairs if p.question in asked], seed),
        "slices": slice_accuracy([p for p in pairs if p.question in asked], sets, snapshot),
        "missing_criteria": [name for name in criteria if name not in asked],
        "head_correlation": _head_correlation(sets, scores, asked),
        "num_prompts": len({candidates.prompt.id for candidates in sets}),
        "num_tasks": len({j.task_id for candidates in sets for j in candidates.judgements}),
        "num_picks": sum(len(candidates.judgements) for candidates in sets),
        "num_pairs": len(pairs),
    }


def _with_ties(
    sets: Sequence[CandidateSet], scores: Scores, question: str, threshold: float | None
) -> dict[str, Any]:
    margins, outcomes = margins_and_outcomes(sets, scores, question)
    accuracy = None
    if threshold is not None and outcomes:
        accuracy = tie_aware_accuracy(margins, outcomes, threshold)
    return {
        "accuracy_with_ties": accuracy,
        "tie_threshold": threshold,
        "num_ties": outcomes.count(0),
    }


def validation_thresholds(
    sets: Sequence[CandidateSet], scores: Scores, questions: Sequence[str]
) -> dict[str, float]:
    """By question, the margin below which a pair is best called a tie; of validation sets.

    Questions without a tie there are left out: nothing tells where ties begin.
    """
    found: dict[str, float] = {}
    for name in questions:
        margins, outcomes = margins_and_outcomes(sets, scores, name)
        if 0 in outcomes:
            found[name] = fit_tie_threshold(margins, outcomes)
    return found


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


def held_out_sets(
    folder: str | Path, snapshot: Snapshot, split: Split, alike: bool = True
) -> list[CandidateSet]:
    """The judged sets of one split, none of which shaped the reward model in ``folder``.

    Args:
        alike: refuse prompts that are alike by text (`rewards.components`) to one of the snapshot
            that shaped the model, too.

    Raises:
        LeakError: a prompt is in two splits, or it, or one alike, shaped the model in training.
        ValueError: the split has no picks.
    """
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
        if prompt_digest(candidates.prompt) in trained_on:
            raise LeakError(
                f"prompt {candidates.prompt.text!r} is in split {split.value!r} of this snapshot, "
                f"but the reward model {folder} was trained on it"
            )
    if alike:
        _refuse_alike(folder, snapshot, {s.prompt.id for s in sets}, trained_on)
    return sets


def _refuse_alike(
    folder: str | Path, snapshot: Snapshot, held_out: set[str], trained_on: set[str]
) -> None:
    learned = {p.id for p in snapshot.prompts if prompt_digest(p) in trained_on}
    for component in find_components(snapshot.prompts, join_by=()):
        members = set(component.prompt_ids)
        if members & held_out and members & learned:
            first, second = min(members & held_out), min(members & learned)
            raise LeakError(
                f"prompt {snapshot.prompt_of[first].text!r} is held out, but the reward model "
                f"{folder} was trained on one like it: {snapshot.prompt_of[second].text!r}"
            )


def score_sets(
    scorer: PreferenceScorer,
    snapshot: Snapshot,
    sets: Sequence[CandidateSet],
    cache: FeatureCache | None = None,
) -> Scores:
    """Scores of every candidate of ``sets``."""
    from rewards.models.features import open_bank, own_features, own_prompts

    bank = open_bank(snapshot, own_prompts(sets), scorer.encoder, cache)
    return scorer.score_candidates(own_features(sets, bank))


def audit_model(
    folder: str | Path, scorer: Scorer, snapshot: Snapshot, split: Split, num_prompts: int
) -> dict[str, Any]:
    """`rewards.audit.audit_biases` on the first held-out prompts, by id.

    Raises:
        LeakError, ValueError: as `held_out_sets`.
    """
    from rewards.audit import audit_biases
    from rewards.images import SourcePictures, open_candidate

    by_prompt: dict[str, CandidateSet] = {}
    for candidates in held_out_sets(folder, snapshot, split):
        by_prompt.setdefault(candidates.prompt.id, candidates)
    items, pictures = [], SourcePictures(snapshot)
    for prompt_id in sorted(by_prompt)[:num_prompts]:
        prompt, sources = by_prompt[prompt_id].prompt, pictures.of(by_prompt[prompt_id].prompt)
        for name in by_prompt[prompt_id].candidate_ids:
            picture = open_candidate(snapshot, snapshot.candidate_of[name])
            item = RewardItem(name, prompt_id, prompt.text, image=picture, source_images=sources)
            items.append(item)
    return audit_biases(scorer, snapshot, items)


def evaluate_model(
    folder: str | Path,
    scorer: PreferenceScorer,
    snapshot: Snapshot,
    split: Split,
    cache: FeatureCache | None = None,
    alike: bool = True,
) -> dict[str, Any]:
    """Measure the reward model in ``folder`` on one split of any snapshot; see `build_report`.

    Raises:
        LeakError: as `held_out_sets`, with ``alike``.
        ValueError: the split has no picks on the model's criteria.
    """
    sets = held_out_sets(folder, snapshot, split, alike)
    scores = score_sets(scorer, snapshot, sets, cache)
    thresholds: dict[str, float] = {}
    if split == Split.TEST:
        aside = [s for s in candidate_sets(snapshot) if s.prompt.split == Split.VALIDATION]
        if any(judgement.best is None for s in aside for judgement in s.judgements):
            known = score_sets(scorer, snapshot, aside, cache)
            thresholds = validation_thresholds(aside, known, scorer.outputs)
    criteria = scorer.model.config.criteria
    return {
        **build_report(sets, scores, criteria, snapshot=snapshot, tie_thresholds=thresholds),
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


def register(folder: str | Path, report: dict[str, Any], minimum: float | None = None) -> None:
    """Make ``report`` that of the reward model's run: `require_accuracy` reads it from then on.

    What only the training knows (its seed, its best step ...) is kept. Writes the page too.

    Raises:
        ValueError: the report is on other weights than the folder's.
    """
    folder = Path(folder)
    weights = file_sha256(folder / WEIGHTS_FILE)
    if report["model_sha256"] != weights:
        raise ValueError(
            f"the report is on weights {report['model_sha256']}, but {folder} holds {weights}"
        )
    path = folder / REPORT_FILE
    whole = {**(read_json(path) if path.is_file() else {}), **report}
    write_json(path, whole)
    write_page(whole, folder / PAGE_FILE, minimum)


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
