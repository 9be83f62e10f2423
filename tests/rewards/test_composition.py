import statistics

import pytest

from rewards.base import RewardItem, Score, ScorerSpec, ScoringError
from rewards.composition import (
    Calibration,
    CompositeScorer,
    Gate,
    Part,
    SharedBackboneWarning,
    calibrate,
    warn_of_shared_backbones,
)
from rewards.failures import RewardSource


class Table:
    """A scorer that looks its values up by sample."""

    def __init__(self, name, values, backbone="", needs=("image",), components=()):
        self.values = values
        self.spec = ScorerSpec(name, "1", tuple(components), frozenset(needs), backbone)

    def score(self, items):
        return [_score(self.values[item.sample_id]) for item in items]


def _score(value):
    if isinstance(value, Score):
        return value
    return Score(None, error=value) if isinstance(value, str) else Score(value)


def items(*names, group="g", **metadata):
    return [RewardItem(name, group, "p", metadata=metadata) for name in names]


def part(scorer, mean=0.0, std=1.0, **more):
    return Part(scorer, Calibration(scorer.spec.name, "1", mean, std, 9), **more)


def values(composite, these):
    return [score.value for score in composite.score(these)]


PRETTY = Table("pretty", {"a": 1.0, "b": 3.0, "c": None, "d": "timeout"})
TEXT = Table("text", {"a": 0.9, "b": 0.3, "c": 0.5, "d": 0.5})


def test_calibration_is_frozen_and_written(tmp_path):
    calibration = calibrate(PRETTY, items("a", "b", "c"))
    assert (calibration.mean, calibration.std, calibration.count) == (2.0, 1.0, 2)
    calibration.save(tmp_path / "pretty.json")
    assert Calibration.load(tmp_path / "pretty.json") == calibration
    with pytest.raises(ValueError, match="item 'd' failed: timeout"):
        calibrate(PRETTY, items("a", "d"))
    with pytest.raises(ValueError, match="are all 1: they set no scale"):
        calibrate(PRETTY, items("a", "a"))
    with pytest.raises(ValueError, match="made for scorer 'text' version 1, this is 'pretty'"):
        Part(PRETTY, Calibration("text", "1", 0, 1, 2))


def test_a_weighted_sum_of_deviations():
    composite = CompositeScorer([part(PRETTY, 2, 1, weight=1), part(TEXT, 0.5, 0.2, weight=3)])
    # z: a (-1, 2), b (1, -1); c has no pretty; d failed.
    scores = composite.score(items("a", "b", "c", "d"))
    assert [s.value for s in scores[:3]] == pytest.approx([(-1 + 6) / 4, (1 - 3) / 4, 0.0])
    assert scores[0].components == pytest.approx({"pretty": -1, "text": 2})
    assert (scores[3].value, scores[3].error) == (None, "pretty: timeout")
    alone = CompositeScorer([part(PRETTY)])
    assert alone.score(items("c"))[0].value is None


def test_the_least_part_rules_and_nothing_pays_for_it():
    composite = CompositeScorer([part(PRETTY, 2, 1), part(TEXT, 0.5, 0.2)], rule="min")
    assert values(composite, items("a", "b")) == pytest.approx([-1, -1])


def test_weights_by_category():
    composite = CompositeScorer([part(PRETTY, category_weights={"icon": 0.0}), part(TEXT)])
    assert values(composite, items("b", category="icon")) == [0.3]
    assert values(composite, items("b", category="poster")) == [1.65]


def test_a_gate_caps_what_nothing_may_make_up_for():
    gated = CompositeScorer([part(PRETTY), part(TEXT)], gates=[Gate("text", 0.5, cap=-3)])
    assert values(gated, items("a", "b")) == pytest.approx([0.95, -3])
    detail = Table("text", {"a": Score(0.9, {"figures": 0.0})}, components=("figures",))
    gated = CompositeScorer([part(detail)], gates=[Gate("text", 0.5, -1, component="figures")])
    assert values(gated, items("a")) == [-1]
    with pytest.raises(ValueError, match=r"gate reads scorer 'ocr', the parts are \['text'\]"):
        CompositeScorer([part(TEXT)], gates=[Gate("ocr", 0.5)])


def test_gdpo_tells_apart_what_a_sum_makes_equal():
    # One sum for all four, of one success each: the rarer one counts for more.
    names = "abcd"
    first = Table("first", dict(zip(names, (1.0, 1.0, 0.0, 1.0), strict=True)))
    second = Table("second", dict(zip(names, (0.0, 0.0, 1.0, 0.0), strict=True)))
    constant = Table("constant", dict.fromkeys(names, 5.0))
    weighed = [part(first), part(second, weight=2), part(constant)]
    advantages = values(CompositeScorer(weighed, rule="gdpo"), items(*names))
    assert advantages[2] > advantages[0] == advantages[1] == advantages[3]
    by_hand = (2 * 0.75 - 0.75) / statistics.pstdev([1, 1, 0, 1]) / 4  # the constant adds 0 of 1
    assert advantages[2] == pytest.approx(by_hand)


def test_gdpo_in_a_composite_is_by_group():
    scorer = Table("s", {"a": 0.0, "b": 2.0, "x": 100.0, "y": 104.0})
    composite = CompositeScorer([part(scorer)], rule="gdpo")
    both = [*items("a", "b"), *items("x", "y", group="h")]
    assert values(composite, both) == pytest.approx([-1, 1, -1, 1])
    assert composite.spec.groupwise
    assert not CompositeScorer([part(scorer)]).spec.groupwise


def test_an_identity_that_follows_the_settings():
    first = CompositeScorer([part(TEXT)]).spec.version
    assert first == CompositeScorer([part(TEXT)]).spec.version
    assert first != CompositeScorer([part(TEXT, std=2)]).spec.version
    assert first != CompositeScorer([part(TEXT)], rule="min").spec.version
    latents = Table("latents", {}, needs=("latents",))
    with pytest.raises(ValueError, match="read nothing in common"):
        CompositeScorer([part(TEXT), part(latents)])
    with pytest.raises(ValueError, match=r"different names, got \['text', 'text'\]"):
        CompositeScorer([part(TEXT), part(TEXT)])


def test_a_judge_that_shares_the_backbone_of_a_teacher_is_pointed_out():
    teacher = Table("pickscore", {}, backbone="clip-vit-h-14")
    with pytest.warns(SharedBackboneWarning, match="'hps' shares the backbone 'clip-vit-h-14'"):
        warn_of_shared_backbones([teacher], [Table("hps", {}, backbone="clip-vit-h-14")])
    warn_of_shared_backbones([teacher], [TEXT])


FLAKY = Table("flaky", {"a": 1.0, "b": "timeout", "c": 3.0, "x": 4.0, "n": None})
BOTH = [*items("a", "b", "c"), *items("x", group="h")]


def kept(policy):
    return [s and s.value for s in RewardSource(FLAKY, policy, 0.5).score(BOTH)]


def test_a_failure_stops_or_drops_as_told():
    with pytest.raises(ScoringError, match="'flaky' failed on sample 'b': timeout"):
        kept("raise")
    assert kept("drop_sample") == [1.0, None, 3.0, 4.0]
    assert kept("drop_group") == [None, None, None, 4.0]
    with pytest.raises(ScoringError, match=r"no sample of 1 is left .* 'b': timeout"):
        RewardSource(FLAKY, "drop_sample", 0.5).score(items("b"))
    with pytest.raises(ScoringError, match="does not apply to sample 'n'"):
        RewardSource(FLAKY, "drop_group").score(items("n"))
    with pytest.raises(ValueError, match="one of raise, drop_sample, drop_group, got 'zero'"):
        RewardSource(FLAKY, "zero")


def test_too_many_failures_stop_a_run_that_drops():
    source = RewardSource(FLAKY, "drop_sample", max_failure_rate=0.02)
    for _ in range(48):
        source.score(items("a"))
    source.score(items("a", "b"))
    with pytest.raises(ScoringError, match=r"2 of 52 items failed.*0\.02 allows.*sample 'b'"):
        source.score(items("a", "b"))
