import numpy as np
import pytest

from annotate.records import Prompt, Question
from rewards.evaluate import (
    agreement_pairs,
    build_report,
    cluster_bootstrap,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    require_accuracy,
    scored_pairs,
)
from rewards.folder import REPORT_FILE, WEIGHTS_FILE, file_sha256, write_json
from rewards.judgements import CandidateSet, Judgement

DETAIL = Question.DETAIL


def judged(*picks, question=DETAIL, prompt="p"):
    """A set of three candidates; each pick is (annotator, best, worst)."""
    return CandidateSet(
        Prompt(id=prompt, text=prompt),
        tuple(f"{prompt}{index}" for index in range(3)),
        tuple(
            Judgement(f"{who}-{question}", "t", who, question, best, worst)
            for who, best, worst in picks
        ),
    )


def scores(*values, prompt="p", question=DETAIL):
    return {f"{prompt}{i}": {question.value: value} for i, value in enumerate(values)}


def test_a_pick_implies_all_pairs_with_the_best_or_the_worst():
    pairs = scored_pairs([judged(("ada", 2, 0))], scores(1.0, 2.0, 4.0))
    assert [(pair.better, pair.worse, pair.margin) for pair in pairs] == [
        (2, 0, 3.0),
        (2, 1, 2.0),
        (1, 0, 1.0),
    ]


def test_a_tie_of_the_annotator_implies_nothing():
    assert scored_pairs([judged(("ada", None, None))], scores(1, 2, 3)) == []


def test_the_ceiling_compares_each_designer_with_the_others():
    # Ada: 2 > 1 > 0. Ben: 2 > 0 > 1. They agree on 2 > 0 and 2 > 1 and differ on {0, 1}.
    pairs = scored_pairs([judged(("ada", 2, 0), ("ben", 2, 1))], scores(0, 1, 2))
    shared = agreement_pairs(pairs)
    assert len(shared) == 6
    assert sum(alike for _, alike in shared) == 4


def test_the_same_designer_twice_is_no_ceiling():
    pairs = scored_pairs([judged(("ada", 2, 0), ("ada", 2, 0))], scores(0, 1, 2))
    assert agreement_pairs(pairs) == []


def test_the_report_says_how_often_the_model_agrees():
    sets = [judged(("ada", 2, 0), ("ben", 2, 1))]
    report = build_report(sets, scores(0, 1, 2), ["detail", "aesthetics"])
    assert report["accuracy"] == pytest.approx(5 / 6)
    assert report["ceiling"] == pytest.approx(4 / 6)
    assert report["missing_criteria"] == ["aesthetics"]
    # A model that cannot tell is right half of the time.
    assert build_report(sets, scores(1, 1, 1), ["detail"])["accuracy"] == 0.5
    with pytest.raises(ValueError, match=r"ask for \['detail'\], expected one of"):
        build_report(sets, scores(0, 1, 2), ["aesthetics"])


def test_the_mean_gives_each_criterion_the_same_weight():
    # 1 of 1 on the first criterion, 0 of 3 on the second.
    estimate, _, _ = cluster_bootstrap("abcd", ["x", "y", "y", "y"], [1, 0, 0, 0])
    assert estimate == 0.5


def test_the_interval_knows_that_pairs_of_a_prompt_are_one():
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.7
    values = np.repeat(truth, 20).astype(float)
    clusters = [f"p{index}" for index in np.repeat(np.arange(60), 20)]
    estimate, low, high = cluster_bootstrap(clusters, ["x"] * 1200, values)
    error = np.sqrt(truth.mean() * (1 - truth.mean()) / 60)
    assert estimate == pytest.approx(truth.mean())
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_the_temperature_undoes_a_scale():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1.5, 20000)
    sign = np.where(rng.random(20000) < 1 / (1 + np.exp(-truth)), 1, -1)
    margins = truth * sign
    assert fit_temperature(margins) == pytest.approx(1, rel=0.05)
    assert fit_temperature(4 * margins) == pytest.approx(4, rel=0.05)
    assert negative_log_likelihood(4 * margins, 4) < negative_log_likelihood(4 * margins)
    assert expected_calibration_error(margins) < 0.015
    assert expected_calibration_error(4 * margins) > 0.1


def test_the_calibration_error_by_hand():
    # Two pairs at confidence 0.9, one right and one wrong: |0.9 - 0.5|.
    margin = np.log(9.0)
    assert expected_calibration_error(np.array([margin, -margin]), num_bins=1) == pytest.approx(0.4)


@pytest.fixture
def model_folder(tmp_path):
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    report = {"accuracy": 0.71, "ci_low": 0.66, "ci_high": 0.76, "ceiling": 0.8}
    digest = file_sha256(tmp_path / WEIGHTS_FILE)
    write_json(tmp_path / REPORT_FILE, {**report, "model_sha256": digest})
    return tmp_path


def test_the_gate_lets_a_good_model_pass(model_folder):
    assert require_accuracy(model_folder, 0.71)["accuracy"] == 0.71


def test_the_gate_refuses_and_says_why(model_folder, tmp_path_factory):
    with pytest.raises(ValueError, match=r"is 0\.710 .* expected at least 0\.750"):
        require_accuracy(model_folder, 0.75)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 75"):
        require_accuracy(model_folder, 75)
    with pytest.raises(FileNotFoundError, match="winsome reward train"):
        require_accuracy(tmp_path_factory.mktemp("empty"), 0.5)


def test_the_gate_refuses_a_report_on_other_weights(model_folder):
    (model_folder / WEIGHTS_FILE).write_bytes(b"swapped")
    with pytest.raises(ValueError, match="reports on weights"):
        require_accuracy(model_folder, 0.5)
