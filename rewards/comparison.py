"""Two reward models on the same pairs, with the interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from annotate.records import Question
from rewards.agreement import Scores, cluster_bootstrap, scored_pairs
from rewards.judgements import CandidateSet

__all__ = ["compare_scores"]


def compare_scores(
    sets: Sequence[CandidateSet], first: Scores, second: Scores, seed: int = 0
) -> dict[str, Mapping[str, Any]]:
    """Accuracy of two models on the pairs that both have a head for, and second less first.

    Both meet the same prompts in every draw of the bootstrap, so the interval is that of the
    difference: two accuracies whose own intervals overlap may still differ.

    Returns:
        question, and ``mean`` over the criteria as in the report (``overall`` counts only where it
        is the sole question) -> ``first``, ``second``, ``difference``, ``low``,
        ``high`` (both None for a single prompt), ``num_pairs``.

    Raises:
        ValueError: no pick asks for a head that both have.
    """
    pairs, others = scored_pairs(sets, first), scored_pairs(sets, second)
    common = {pair.question for pair in pairs} & {pair.question for pair in others}
    paired = list(
        zip(
            [pair for pair in pairs if pair.question in common],
            [pair for pair in others if pair.question in common],
            strict=True,
        )
    )
    if not paired:
        raise ValueError("no held-out pick asks a question for which both models have a head")
    questions = sorted({a.question for a, _ in paired})
    criteria = [name for name in questions if name != Question.OVERALL] or questions
    found: dict[str, Mapping[str, Any]] = {}
    for name in [*questions, "mean"]:
        asked = criteria if name == "mean" else [name]
        of = [(a, b) for a, b in paired if a.question in asked]
        prompts, groups = [a.prompt_id for a, _ in of], [a.question for a, _ in of]

        def mean(
            values: list[float], prompts=prompts, groups=groups
        ) -> tuple[float, float | None, float | None]:
            return cluster_bootstrap(prompts, groups, values, seed)

        difference, low, high = mean([b.agreement - a.agreement for a, b in of])
        found[name] = {
            "first": mean([a.agreement for a, _ in of])[0],
            "second": mean([b.agreement for _, b in of])[0],
            "difference": difference,
            "low": low,
            "high": high,
            "num_pairs": len(of),
        }
    return found
