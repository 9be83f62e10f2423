"""The judge against a real server of its protocol."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace

import pytest
from chat_server import BIAS, MODEL, ChatServer, choice, completion, ratings, send
from PIL import Image

from rewards.base import RewardItem
from rewards.scorers.judge import JudgeScorer, JudgeSettings
from rewards.scorers.rubrics import RUBRICS, Rubric
from rewards.service.cache import ScoreCache
from rewards.service.calls import ClientSettings, ServiceError

QUICK = ClientSettings(deadline=60, attempts=3, backoff=0.01)


def item(red, prompt="a poster", group="g"):
    return RewardItem(f"s{red}", group, prompt, image=Image.new("RGB", (9, 7), (red, 1, 2)))


@pytest.fixture
def server():
    with ChatServer() as server:
        yield server


def scorer(server, client=QUICK, settings=(), **options):
    return JudgeScorer(server.url, JudgeSettings(MODEL, **dict(settings)), client, **options)


def expected_rating(red):
    shares = {int(k): v for k, v in ratings(red / 255).items() if k.isdigit()}
    return sum(r * share for r, share in shares.items()) / sum(shares.values())


def test_a_rating_is_its_expectation_over_the_log_probabilities(server):
    scores = scorer(server).score([item(10), item(200)])
    for score, red in zip(scores, (10, 200), strict=True):
        assert score.value == pytest.approx(expected_rating(red))
        assert dict(score.components) == pytest.approx(dict.fromkeys(RUBRICS, expected_rating(red)))
        assert 0 < score.sigma < 1
    # Both would be the same number by the likeliest token alone.
    near = scorer(server).score([item(190), item(200)])
    assert near[0].value < near[1].value


def test_the_judge_is_asked_for_one_token_of_a_lossless_image(server):
    scorer(server, ClientSettings(token="key"), extra={"seed": 7}).score([item(33)])
    asked = server.asked[0]
    assert asked.images[0].getpixel((5, 5)) == (33, 1, 2)
    assert asked.token == "Bearer key"
    settings = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 7}
    assert {name: asked.tree[name] for name in settings} == settings
    told = [name for name, of in RUBRICS.items() for a in server.asked if of.en in a.system]
    assert told == list(RUBRICS)


def test_a_chinese_brief_meets_a_chinese_rubric(server):
    wanted = {"criteria": ("detail",)}
    scorer(server, settings=wanted).score([item(1, "一只猫"), item(2, "a cat")])
    scorer(server, settings=wanted | {"language": "en"}).score([item(3, "一只猫")])
    of_text = {asked.images[0].getpixel((0, 0))[0]: asked for asked in server.asked}
    assert RUBRICS["detail"].zh in of_text[1].system
    assert "一只猫" in of_text[1].text
    assert RUBRICS["detail"].en in of_text[2].system
    assert RUBRICS["detail"].en in of_text[3].system


def edit(red, *sources, prompt="make it blue"):
    pictures = [Image.new("RGB", (5, 4), (source, 3, 3)) for source in sources]
    return replace(item(red, prompt), source_images=pictures)


def reds(asked):
    return [image.getpixel((0, 0))[0] for image in asked.images]


def test_the_sources_of_an_edit_come_first_and_the_text_says_so(server):
    server.judge = lambda asked: ratings(asked.images[-1].getpixel((0, 0))[0] / 255)
    judge = scorer(server, settings={"criteria": ("instruction", "detail")}, cache=ScoreCache())
    (score,) = judge.score([edit(200, 30)])
    assert score.value == pytest.approx(expected_rating(200))
    by_rubric = {RUBRICS["instruction"].edit_en in a.system: a for a in server.asked}
    assert set(by_rubric) == {True, False}
    assert RUBRICS["detail"].en in by_rubric[False].system
    for asked in server.asked:
        assert reds(asked) == [30, 200]
        assert "The first image is the source that the brief edits" in asked.text
    server.asked.clear()
    judge.score([edit(200, 30), edit(200, 31), edit(200, 31, 30), edit(200, 7, prompt="改成蓝色")])
    assert sorted(map(reds, server.asked)) == [[7, 200], [7, 200], [31, 30, 200], [31, 30, 200],
                                               [31, 200], [31, 200]]  # fmt: skip
    told = {tuple(reds(asked)): asked for asked in server.asked}
    assert "The first 2 images are the sources" in told[31, 30, 200].text
    assert "第一张图像是要编辑的原图，最后一张是编辑结果" in told[7, 200].text
    assert any(RUBRICS["instruction"].edit_zh in asked.system for asked in server.asked)


def test_results_of_an_edit_are_compared_beside_its_source(server):
    server.judge = lambda asked: choice(*(red / 255 for red in reds(asked)[1:]))
    judge = scorer(server, settings={"mode": "pairwise", "criteria": ("instruction",)})
    low, high = judge.score([edit(0, 9), edit(255, 9)])
    assert low.value + high.value == pytest.approx(1)
    assert low.value < 0.1
    assert sorted(map(reds, server.asked)) == [[9, 0, 255], [9, 255, 0]]
    for asked in server.asked:
        assert "then come two results. Image A comes first" in asked.text
        assert RUBRICS["instruction"].edit_en in asked.system


def test_both_orders_cancel_a_liking_for_the_first_place(server):
    judge = scorer(server, settings={"criteria": ("detail",)})
    pairs = [(item(0), item(255)), (item(100), item(101)), (item(255), item(0))]
    low, close, high = judge.compare(pairs)
    assert low.log_odds["detail"] == pytest.approx(-4)
    assert high.log_odds["detail"] == -low.log_odds["detail"]  # to the bit
    assert close.log_odds["detail"] == pytest.approx(-4 / 255)
    # The close pair is decided by the place alone.
    assert [p.consistency for p in (low, close, high)] == [1, 0, 1]
    assert math.log(choice(0.5, 0.5)[" A"] / choice(0.5, 0.5)["B"]) == pytest.approx(BIAS)


def test_a_win_rate_is_the_mean_over_the_group(server):
    judge = scorer(server, settings={"mode": "pairwise", "criteria": ("detail", "aesthetics")})
    scores = judge.score([item(0), item(51), item(255), item(9, group="alone")])

    def beats(a, b):
        return 1 / (1 + math.exp(-4 * (a - b) / 255))

    rates = [(beats(0, 51) + beats(0, 255)) / 2, (beats(51, 0) + beats(51, 255)) / 2,
             (beats(255, 0) + beats(255, 51)) / 2]  # fmt: skip
    assert [score.value for score in scores[:3]] == pytest.approx(rates)
    assert dict(scores[2].components) == pytest.approx({"detail": rates[2], "aesthetics": rates[2]})
    assert (scores[3].value, scores[3].error) == (None, None)
    assert len(server.asked) == 2 * 3 * 2  # criteria, pairs, orders
    blind = RewardItem("blind", "g", "p")
    first, lost, last = judge.score([item(0), blind, item(255)])
    assert lost.error == "there is no image"
    assert (first.value, last.value) == pytest.approx((beats(0, 255), beats(255, 0)))
    left, _ = judge.score([item(0), blind])
    assert left.error == "no other image of its group could be read"


def test_what_is_known_is_not_asked_again_but_by_other_settings(server, tmp_path):
    cache = ScoreCache(path=tmp_path / "answers.sqlite")
    first = scorer(server, cache=cache).score([item(5)])
    assert len(server.asked) == 3
    assert scorer(server, cache=cache).score([item(5)]) == first
    assert len(server.asked) == 3
    scorer(server, cache=cache).score([item(5, "another")])
    assert len(server.asked) == 6
    scorer(server, cache=cache, settings={"min_mass": 0.6}).score([item(5)])
    assert len(server.asked) == 9


def test_settings_and_rubrics_make_the_version(server):
    own = {"detail": Rubric("Sharpness.", "清晰度。")}
    versions = {
        scorer(server).spec.version,
        scorer(server, settings={"scale": 7}).spec.version,
        scorer(server, settings={"mode": "pairwise"}).spec.version,
        scorer(server, rubrics=own).spec.version,
        scorer(server, rubrics={"detail": replace(own["detail"], edit_en="X")}).spec.version,
        scorer(server, extra={"seed": 1}).spec.version,
    }
    assert len(versions) == 6
    assert scorer(server).spec.backbone == MODEL
    brand = scorer(server, settings={"criteria": ("brand",)}, rubrics={"brand": own["detail"]})
    assert brand.spec.components == ("brand",)
    with pytest.raises(ValueError, match=r"no rubric for \['brand'\]; there is one for aesthetics"):
        scorer(server, settings={"criteria": ("brand",)})


def test_a_server_without_the_model_is_refused_at_once(server):
    with pytest.raises(ServiceError, match=rf"serves \['{MODEL}'\], wanted 'gpt'"):
        JudgeScorer(server.url, JudgeSettings("gpt"), QUICK)


def answer(tree, status=200):
    def do(handler):
        send(handler, status, tree)
        return True

    return do


def hang(handler):
    time.sleep(1.0)
    return True


def listed(*entries):
    return completion([{"token": token, "logprob": value} for token, value in entries])


BARE = {"model": MODEL, "choices": [{"message": {"content": "5"}, "logprobs": None}]}
DEEDS = {
    "hang": (hang, "no answer"),
    "not json": (answer(b"<html>5</html>"), "not JSON"),
    "five": (answer(5), "no log-probabilities"),
    "no log-probs": (answer(BARE), "no log-probabilities"),
    "no choices": (answer({"model": MODEL, "choices": []}), "no log-probabilities"),
    "nan": (answer(json.dumps(BARE).replace("null", "NaN").encode()), "NaN is not JSON"),
    "words": (answer(listed(("Five", -0.1), ("5", -3.0))), "lies on 1 to 5.*likeliest is 'Five'"),
    "more than 1": (answer(listed(("5", 0.5))), "no log-probabilities"),
    "true": (answer(listed(("5", True))), "True is no number"),
    "other model": (answer(listed(("5", -0.1)) | {"model": "else"}), "answered as 'else'"),
    "refused": (answer({"error": {"message": "image too large"}}, 400), "400: image too large"),
    "overloaded": (answer({"error": "busy"}, 429), "after 2 attempts.*429: busy"),
    "zero in 500": (answer(listed(("1", -0.1)), 500), "status 500"),
}


@pytest.mark.parametrize("name", sorted(DEEDS))
def test_no_fault_of_the_server_is_a_rating(server, name):
    judge = scorer(server, settings={"criteria": ("detail",)})
    assert judge.score([item(1)])[0].error is None
    patience = 0.3 if name == "hang" else 60
    judge.chat.settings = ClientSettings(deadline=patience, attempts=2, backoff=0.01)
    server.deed, message = DEEDS[name]
    (score,) = judge.score([item(2)])
    assert score.value is None
    assert not score.components
    assert re.search(message, str(score.error))


def test_what_may_pass_is_tried_again(server):
    busy = [True, True]

    def deed(handler):
        if busy and busy.pop():
            send(handler, 503, {"error": {"message": "loading"}})
            return True
        return False

    server.deed = deed
    judge = scorer(server, settings={"criteria": ("detail",)})
    assert judge.score([item(40)])[0].value == pytest.approx(expected_rating(40))


def test_an_unlisted_letter_is_as_unlikely_as_the_least_listed(server):
    server.judge = lambda asked: {"A": 0.9, "The": 0.08, "I": 0.02}
    judge = scorer(server, settings={"criteria": ("detail",)})
    forth = math.log(0.9 / 0.02)
    assert judge.compare([(item(1), item(2))])[0].log_odds["detail"] == 0.0
    server.judge = lambda asked: (
        {"A": 0.9, "The": 0.08, "I": 0.02} if asked.images[0].getpixel((0, 0))[0] == 3
        else {"B": 0.9, "I": 0.1}
    )  # fmt: skip
    found = judge.compare([(item(3), item(4))])[0]
    assert found.log_odds["detail"] == pytest.approx((forth + math.log(0.9 / 0.1)) / 2)
    assert found.consistency == 1
