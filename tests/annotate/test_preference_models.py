"""Plackett-Luce and Bradley-Terry beside the package choix, published figures, and known truth."""

from __future__ import annotations

import choix
import numpy as np
import pytest

from annotate.plackett_luce import Choices, best_worst_choices, fit, ranking_choices
from annotate.records import Candidate, Generation, Pick, Task
from annotate.reliability import annotator_reliability
from annotate.shares import wilson, win_rate
from annotate.win_rates import bradley_terry, pairings, standings


def test_plackett_luce_is_that_of_choix():
    rng = np.random.default_rng(0)
    rankings = choix.generate_rankings(rng.normal(size=7), 60, 4)
    rows = [row for ranking in rankings for row in ranking_choices(list(map(int, ranking)))]
    found = fit(Choices.collect(rows, [0] * 7), utility_variance=np.inf)
    expected = choix.ilsr_rankings(7, rankings, tol=1e-12)
    np.testing.assert_allclose(found.utilities, expected, atol=1e-6)
    assert found.log_likelihood == pytest.approx(
        choix.log_likelihood_rankings(rankings, expected), abs=1e-6
    )


def test_best_and_worst_of_two_by_hand():
    # Of four looks at two items the first wins three: log odds of log 3, once for each stage that
    # chooses; the second stage has one item left and says nothing.
    rows = [row for win in (0, 0, 0, 1) for row in best_worst_choices(win, [], 1 - win)]
    found = fit(Choices.collect(rows, [0, 0]), utility_variance=np.inf)
    assert found.utilities[0] - found.utilities[1] == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match="no maximum"):
        fit(Choices.collect(rows[:2], [0, 0]), utility_variance=np.inf)


def simulated(precisions: dict[str, float], count: int, k: int = 4, seed: int = 0):
    """Tasks of ``k`` with standard normal utilities, answered by each annotator."""
    rng = np.random.default_rng(seed)
    tasks, picks = {}, []
    for number in range(count):
        name = f"t{number}"
        ids = tuple(f"{name}-{i}" for i in range(k))
        tasks[name] = Task(id=name, prompt_id=name, candidate_ids=ids)
        utilities = rng.normal(size=k)
        for annotator, precision in precisions.items():
            win = int((precision * utilities + rng.gumbel(size=k)).argmax())
            regret = -precision * utilities + rng.gumbel(size=k)
            regret[win] = -np.inf
            picks.append(
                Pick(
                    id=f"{name}-{annotator}", task_id=name, annotator=annotator,
                    outcome="picked", win=win, lose=int(regret.argmax()),
                )
            )  # fmt: skip
    return tasks, picks


def test_temperatures_come_back():
    truth = {"ada": 2.5, "bo": 1.2, "cy": 0.6, "random": 0.02}
    tasks, picks = simulated(truth, count=80)
    found = annotator_reliability(tasks, picks)
    assert [row.annotator for row in found] == list(truth)
    for row in found[:3]:
        assert 0.6 < row.temperature * truth[row.annotator] < 1.6
        assert row.ci_low < row.temperature < row.ci_high < 4 * row.ci_low
        assert row.n_picks == 80
    assert found[3].ci_low > found[1].ci_high
    alone = [pick for pick in picks if pick.annotator == "ada"]
    assert annotator_reliability(tasks, alone) == []


# American League East, 1987: wins of each team over each, and Bradley-Terry coefficients beside
# Baltimore's (A. Agresti, Categorical Data Analysis, 2nd edition, section 10.6).
BASEBALL = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]
COEFFICIENTS = [1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0]


def test_bradley_terry_is_that_of_the_published_example_and_of_choix():
    found = bradley_terry(BASEBALL)
    np.testing.assert_allclose(found - found[-1], COEFFICIENTS, atol=6e-4)
    games = [(i, j) for i, row in enumerate(BASEBALL) for j, n in enumerate(row) for _ in range(n)]
    np.testing.assert_allclose(found, choix.ilsr_pairwise(7, games, tol=1e-12), atol=1e-6)
    # choix adds alpha times the sum of squares, half of which is a precision of 2 alpha.
    expected = choix.opt_pairwise(7, games, alpha=0.05, tol=1e-12)
    np.testing.assert_allclose(
        bradley_terry(BASEBALL, prior_precision=0.1), expected - expected.mean(), atol=1e-6
    )


def test_a_version_that_never_lost_needs_a_prior():
    with pytest.raises(ValueError, match="prior_precision above 0"):
        bradley_terry([[0, 3], [0, 0]])
    strong, weak = bradley_terry([[0, 3], [0, 0]], prior_precision=0.1)
    assert strong == pytest.approx(-weak)
    assert 0 < strong < 5


def drawn_by(model: str, name: str) -> Candidate:
    generation = Generation(
        model=model, model_sha256="0" * 64, seed="1", steps=1, guidance_scale=1, height=8, width=8,
        dtype="float32", device="cpu",
    )  # fmt: skip
    return Candidate(
        id=name, prompt_id="p", image_sha256="0" * 64, width=8, height=8, generation=generation
    )


def test_versions_are_ranked_by_what_is_certain():
    tasks, candidates, picks = {}, {}, []

    def compare(first: str, second: str, outcomes: list[str]) -> None:
        for outcome in outcomes:
            name = f"t{len(tasks)}"
            ids = (f"{name}a", f"{name}b")
            tasks[name] = Task(id=name, prompt_id=name, candidate_ids=ids)
            for model, candidate in zip((first, second), ids, strict=True):
                candidates[candidate] = drawn_by(model, candidate)
            win = {"win": 0, "lose": 1}.get(outcome)
            picked = {"win": win, "lose": None if win is None else 1 - win}
            outcome = "all_equal" if win is None else "picked"
            picks.append(Pick(id=name, task_id=name, annotator="a", outcome=outcome, **picked))

    compare("dpo", "sft", ["win"] * 70 + ["lose"] * 28 + ["equal"] * 2)
    compare("lucky", "sft", ["win", "win", "lose"])
    rows = standings(tasks, candidates, picks)
    # Two wins of three put "lucky" above "sft", but nothing of that is certain.
    assert [row.model for row in rows] == ["dpo", "sft", "lucky"]
    by_model = {row.model: row for row in rows}
    assert by_model["dpo"].win_rate == 0.71
    assert by_model["dpo"].n_comparisons == 100
    assert by_model["lucky"].strength > by_model["sft"].strength
    assert by_model["dpo"].ci_low > by_model["sft"].ci_high
    assert standings(tasks, {}, picks) == []
    assert (by_model["sft"].n_wins, by_model["sft"].n_losses, by_model["sft"].n_ties) == (29, 72, 2)
    pairs = {(row.model, row.against): row for row in pairings(tasks, candidates, picks)}
    assert pairs.keys() == {("dpo", "sft"), ("sft", "dpo"), ("lucky", "sft"), ("sft", "lucky")}
    ours, theirs = pairs["dpo", "sft"], pairs["sft", "dpo"]
    assert (ours.n_wins, ours.n_losses, ours.n_ties, ours.n_prompts) == (70, 28, 2, 100)
    assert (ours.win_rate, theirs.win_rate) == (0.71, pytest.approx(0.29))
    assert (theirs.ci_low, theirs.ci_high) == pytest.approx((1 - ours.ci_high, 1 - ours.ci_low))
    assert ours.ci_low > 0.5 > pairs["lucky", "sft"].ci_low


@pytest.mark.parametrize(
    ("won", "trials", "low", "high"),
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion" (1998), method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_equals_the_published_one(won, trials, low, high):
    assert wilson(won / trials, trials) == pytest.approx((low, high), abs=5e-5)


def test_a_prompt_counts_once_however_often_it_was_compared():
    ids = ("x", "y")
    candidates = {"x": drawn_by("dpo", "x"), "y": drawn_by("sft", "y")}
    tasks, picks = {}, []
    for prompt, answers in {"often": [0] * 99, "once": [1]}.items():
        for number, win in enumerate(answers):
            name = f"{prompt}{number}"
            tasks[name] = Task(id=name, prompt_id=prompt, candidate_ids=ids)
            picks.append(
                Pick(id=name, task_id=name, annotator="a", outcome="picked", win=win, lose=1 - win)
            )
    row, _ = pairings(tasks, candidates, picks)
    assert (row.n_wins, row.n_losses, row.n_prompts, row.win_rate) == (99, 1, 2, 0.5)
    rate = win_rate([("often", 1.0)] * 99 + [("once", 0.0)])
    assert (rate.value, rate.ci_low, rate.ci_high) == (0.5, row.ci_low, row.ci_high)
