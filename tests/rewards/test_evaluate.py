import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from annotate.records import Candidate, Generation, Prompt, Question, Snapshot
from rewards.agreement import (
    agreement_pairs,
    cluster_bootstrap,
    fit_temperature,
    measure_pairs,
    negative_log_likelihood,
    scored_pairs,
)
from rewards.audit import IMAGE_EDITS, TOLERANCE, audit_biases
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.comparison import compare_scores
from rewards.evaluate import (
    build_report,
    describe_interval,
    register,
    require_accuracy,
    validation_thresholds,
)
from rewards.folder import PAGE_FILE, REPORT_FILE, WEIGHTS_FILE, file_sha256, write_json
from rewards.judgements import CandidateSet, Judgement
from rewards.monitors import image_statistics
from rewards.posters.draw import draw
from rewards.posters.spec import caption, random_spec
from rewards.report import render_report, write_page

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


def test_accuracy_with_ties_goes_by_the_threshold_of_the_validation_sets():
    # Margins of 2 and more are decided there, of 1 and less are ties.
    aside = [judged(("ada", 2, 0), prompt="v"), judged(("ada", None, None), prompt="t")]
    known = scores(0, 4, 8, prompt="v") | scores(0, 1, 0, prompt="t")
    thresholds = validation_thresholds(aside, known, ["detail", "aesthetics"])
    assert thresholds == {"detail": 1}
    sets = [judged(("ada", 2, 0)), judged(("ada", None, None), prompt="q")]
    values = scores(0, 0.5, 3) | scores(0, 0, 5, prompt="q")
    report = build_report(sets, values, ["detail"], tie_thresholds=thresholds)
    found = report["criteria"]["detail"]
    # Right: 3, 2.5 and the tie of 0; half: the win by 0.5, the ties by 5.
    assert found["accuracy_with_ties"] == pytest.approx((3 + 3 * 0.5) / 6)
    assert (found["accuracy"], found["num_ties"]) == (1.0, 3)
    without = build_report(sets, values, ["detail"])["criteria"]["detail"]
    assert without["accuracy_with_ties"] is None


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


def test_whole_sets_are_measured_by_order_and_by_their_best():
    sets = [judged(("ada", 2, 0), ("ben", 2, 1))]
    right = build_report(sets, scores(0, 1, 2), ["detail"])["criteria"]["detail"]
    # Ada's 2 > 1 > 0 is the model's order; of Ben's 2 > 0 > 1 one pair of three is not.
    assert right["tau_b"] == pytest.approx((1 + 1 / 3) / 2)
    assert (right["regret"], right["regret_random"]) == (0.0, pytest.approx(2 / 3))
    wrong = build_report(sets, scores(2, 1, 0), ["detail"])["criteria"]["detail"]
    assert wrong["regret"] == 1.0
    assert wrong["ece"] > wrong["ece_expected"]
    assert wrong["brier"] > 0.25


def test_slices_tell_where_it_is_good():
    sets = []
    for index, lang in enumerate(["en", "zh"] * 10):
        name = f"q{index}"
        one = judged(("ada", 2, 0), prompt=name)
        sets.append(replace(one, prompt=Prompt(id=name, text=name, lang=lang, category="poster")))
    values = {}
    for candidates in sets:
        rising = (0, 1, 2) if candidates.prompt.lang == "en" else (2, 1, 0)
        values |= scores(*rising, prompt=candidates.prompt.id)
    slices = build_report(sets, values, ["detail"])["slices"]
    assert slices["language"] == {
        "en": {"accuracy": 1.0, "num_pairs": 30},
        "zh": {"accuracy": 0.0, "num_pairs": 30},
    }
    assert slices["category"]["poster"]["accuracy"] == 0.5
    assert slices["annotator"]["ada"]["num_pairs"] == 60
    assert "models" not in slices


def test_pairs_of_one_model_and_of_two_and_of_each_margin_are_told_apart():
    names = [f"q{index}" for index in range(20)]
    sets = [judged(("ada", 2, 0), prompt=name) for name in names]
    values = {}
    for name in names:
        values |= scores(1, 0, 9, prompt=name)  # wrong about 1 > 0 alone, by the least margin
    generation = Generation(
        model="m", model_sha256="a", seed="0", steps=4, guidance_scale=1.0, height=8, width=8,
        dtype="float32", device="cpu",
    )  # fmt: skip
    other = generation.model_copy(update={"model_sha256": "b"})
    candidates = tuple(
        Candidate(id=f"{name}{place}", prompt_id=name, image_sha256="0", width=8, height=8,
                  generation=other if place == 2 else generation)
        for name in names
        for place in range(3)
    )  # fmt: skip
    snapshot = Snapshot("0", Path(), tuple(s.prompt for s in sets), candidates, (), ())
    slices = build_report(sets, values, ["detail"], snapshot=snapshot)["slices"]
    assert slices["models"] == {
        "different": {"accuracy": 1.0, "num_pairs": 40},
        "same": {"accuracy": 0.0, "num_pairs": 20},
    }
    assert slices["margin"]["small"] == {"accuracy": 0.0, "num_pairs": 20}
    assert slices["margin"]["middle"]["accuracy"] == 1.0


def test_the_page_has_the_numbers_and_escapes_what_people_wrote(tmp_path):
    one = judged(*[("<b>ada", 2, 0)] * 10)
    report = build_report([one], scores(0, 1, 2), ["detail"]) | {"held_out": "test"}
    write_page(report, tmp_path / "deep/report.html", minimum=0.9)
    page = (tmp_path / "deep/report.html").read_text(encoding="utf-8")
    assert "The gate at 0.900 is open." in page
    assert "&lt;b&gt;ada" in page
    assert "<b>ada" not in page
    assert f"{report['ece_expected']:.3f} on as many pairs" in page
    assert "is shut" in render_report({**report, "accuracy": 0.5}, 0.9)


def test_each_designer_is_left_out_in_turn():
    # The model has ada's order; ben differs from her on the pair {0, 1}.
    report = build_report([judged(("ada", 2, 0), ("ben", 2, 1))], scores(0, 1, 2), ["detail"])
    ada, ben = report["designers"]["ada"], report["designers"]["ben"]
    assert (ada["accuracy"], ben["accuracy"]) == (1.0, pytest.approx(2 / 3))
    assert ada["ceiling"] == ben["ceiling"] == pytest.approx(2 / 3)
    assert ada["ceiling_gap"] == pytest.approx(1 / 3)
    assert report["ceiling_gap"] == pytest.approx(5 / 6 - 4 / 6)
    alone = build_report([judged(("ada", 2, 0))], scores(0, 1, 2), ["detail"])
    assert alone["designers"]["ada"]["ceiling"] is None
    assert alone["ceiling_gap_low"] is None


def test_large_margins_should_be_on_pairs_that_designers_agree_on():
    sets = [judged(("ada", 2, 0), ("ben", 2, 1))]
    sure_of_the_split_pair = measure_pairs(scored_pairs(sets, scores(0, 9, 10)))
    assert sure_of_the_split_pair["auroc_decided"] == pytest.approx(0.5)
    assert measure_pairs(scored_pairs(sets, scores(1, 1.1, 9)))["auroc_decided"] == 1.0
    agreed = [judged(("ada", 2, 0), ("ben", 2, 0))]
    assert measure_pairs(scored_pairs(agreed, scores(0, 1, 2)))["auroc_decided"] is None


def test_two_models_are_compared_on_the_same_pairs():
    sets, good, bad = [], {}, {}
    for index in range(40):
        name = f"q{index:02}"
        sets.append(judged(("ada", 2, 0), prompt=name))
        good |= scores(0, 1, 2, prompt=name)
        # Every fifth prompt is the other way round: 3 of 3 pairs are lost there.
        bad |= scores(*((2, 1, 0) if index % 5 == 0 else (0, 1, 2)), prompt=name)
    found = compare_scores(sets, bad, good)
    assert found["detail"] == found["mean"]
    assert found["mean"]["first"] == pytest.approx(0.8)
    assert found["mean"]["difference"] == pytest.approx(0.2)
    error = 1.96 * (0.2 * 0.8 / 40) ** 0.5
    assert found["mean"]["low"] == pytest.approx(0.2 - error, abs=0.03)
    assert found["mean"]["high"] == pytest.approx(0.2 + error, abs=0.03)
    same = compare_scores(sets, good, good)["mean"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    both = {name: heads | {"overall": heads["detail"]} for name, heads in good.items()}
    asked = [*sets, judged(("ada", 0, 2), question=Question.OVERALL, prompt="q01")]
    assert compare_scores(asked, both, both)["overall"]["first"] == 0
    assert compare_scores(asked, both, both)["mean"]["first"] == 1  # of the criteria alone
    other = {name: {"aesthetics": 0.0} for name in good}
    with pytest.raises(ValueError, match="both models have a head"):
        compare_scores(sets, good, other)


class Saturation:
    """A scorer that pays for colour."""

    spec = ScorerSpec("colour", "1", ("detail",), frozenset({"image"}))

    def score(self, items):
        values = [image_statistics(item.image)["saturation"] for item in items]
        return [Score(value, {"detail": value}) for value in values]


def test_the_audit_finds_what_a_scorer_secretly_pays_for():
    rng = random.Random(0)
    specs = [random_spec(rng) for _ in range(6)]
    prompts = [Prompt(id=f"p{i}", text=caption(s, "en"), metadata={"spec": s.to_dict()})
               for i, s in enumerate(specs)]  # fmt: skip
    items = [
        RewardItem(
            f"{i}-{k}", f"p{i}", prompts[i].text, image=draw(spec, 64, seed=k, defects=faults)
        )
        for i, spec in enumerate(specs)
        for k, faults in enumerate(({}, {"noise": 0.1}))
    ]
    snapshot = Snapshot("0", Path(), tuple(prompts), (), (), ())
    found = audit_biases(Saturation(), snapshot, items)
    assert set(found) == {*IMAGE_EDITS, "prompt in the other language"}
    paid, free = found["saturation +10 %"]["detail"], found["mirrored"]["detail"]
    assert paid["warning"]
    assert paid["shift"] > TOLERANCE
    assert paid["low"] < paid["shift"] < paid["high"]
    assert (free["shift"], free["warning"]) == (pytest.approx(0, abs=1e-9), False)
    # This scorer reads no prompt.
    assert found["prompt in the other language"]["overall"]["shift"] == 0
    with pytest.raises(ValueError, match="two images of one prompt"):
        audit_biases(Saturation(), snapshot, items[:1])
    report = build_report([judged(("ada", 2, 0))], scores(0, 1, 2), ["detail"])
    page = render_report({**report, "audit": found})
    assert f"{paid['shift']:+.2f} !" in page
    assert "Each designer left out" in page


def test_a_registered_report_is_what_the_gate_reads(model_folder):
    report = build_report([judged(("ada", 2, 0))], scores(0, 1, 2), ["detail"])
    digest = file_sha256(model_folder / WEIGHTS_FILE)
    write_json(model_folder / REPORT_FILE, {"accuracy": 0.1, "seed": 7, "model_sha256": digest})
    register(model_folder, {**report, "model_sha256": digest}, minimum=0.9)
    read = require_accuracy(model_folder, 0.9)
    assert (read["accuracy"], read["seed"]) == (1.0, 7)
    assert "The gate at 0.900 is open." in (model_folder / PAGE_FILE).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="the report is on weights 0"):
        register(model_folder, {**report, "model_sha256": "0"})


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


def test_a_single_prompt_has_no_interval():
    assert cluster_bootstrap("aaa", ["x"] * 3, [1, 0, 1]) == (pytest.approx(2 / 3), None, None)
    assert describe_interval({"ci_low": None, "ci_high": None}) == "no interval: one prompt"
