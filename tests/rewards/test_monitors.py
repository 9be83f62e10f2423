import random
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rewards.base import RewardItem, Score, ScorerSpec
from rewards.monitors import (
    MAX_DRIFT,
    HackingAlarm,
    MonitorSettings,
    RewardMonitor,
    contact_sheet,
    image_statistics,
)
from rewards.posters.draw import draw
from rewards.posters.spec import random_spec
from rewards.scorers.config import Statistic

SPECS = [random_spec(random.Random(seed)) for seed in range(6)]


def rollout(step, change=None, reward=lambda index: float(index % 3)):
    """Six prompts x 3 posters with small defects; ``change(image)`` is the hack."""
    items, scores = [], []
    for index in range(18):
        rng = random.Random(f"{step}/{index}")
        defects = {"noise": 0.3 * rng.random(), "muddy": 0.3 * rng.random()}
        image = draw(SPECS[index // 3], 64, defects, seed=rng.randrange(10**6))
        image = change(image) if change else image
        items.append(RewardItem(f"{step}/{index}", f"g{index // 3}", f"p{index // 3}", image=image))
        scores.append(Score(reward(index), sigma=0.5))
    return items, scores


def grid(image):
    pixels = np.asarray(image).copy()
    pixels[::8] = pixels[::8] // 2
    pixels[:, ::8] = pixels[:, ::8] // 2
    return Image.fromarray(pixels)


def tiled(image):
    small = image.resize((32, 32))
    sheet = Image.new("RGB", (64, 64))
    for place in ((0, 0), (32, 0), (0, 32), (32, 32)):
        sheet.paste(small, place)
    return sheet


def watch(change=None, settings=None, gold=None, reward=lambda index: float(index % 3), steps=10):
    """Clean for the baseline, then with the hack; returns what was raised, if anything."""
    monitor = RewardMonitor(settings, gold)
    for step in range(steps):
        hacked = change if step >= monitor.settings.baseline else None
        try:
            monitor.observe(*rollout(step, hacked, reward))
        except HackingAlarm as alarm:
            return step, str(alarm)
    return None


def test_a_clean_run_raises_no_alarm():
    assert watch(steps=14) is None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda image: ImageEnhance.Color(image).enhance(1.5), "saturation"),
        (lambda image: ImageEnhance.Contrast(image).enhance(1.4), "contrast"),
        (grid, "grid_8"),
        (tiled, "repetition"),
    ],
    ids=["saturation", "contrast", "grid", "copies"],
)
def test_a_hack_is_named_and_stops_the_run(change, name):
    caught = watch(change)
    assert caught is not None
    step, message = caught
    assert 4 <= step <= 6  # at the latest the third rollout after the baseline of four
    assert f"{name} has drifted by +" in message


def more_colour(image):
    return ImageEnhance.Color(image).enhance(1.5)


def little_more_colour(image):
    return ImageEnhance.Color(image).enhance(1.15)


def test_a_grave_drift_shows_in_one_rollout_and_a_slow_one_adds_up():
    assert watch(more_colour)[0] == watch(grid)[0] == 4
    alone = MonitorSettings(window=1)
    assert 4 < watch(little_more_colour)[0] < watch(little_more_colour, alone, steps=20)[0]


def test_prompts_that_the_baseline_never_had_are_judged_by_the_mean_of_all():
    settings = MonitorSettings(baseline=3, window=1, max_equal_groups=1)
    monitor, rng = RewardMonitor(settings), np.random.default_rng(0)

    def observe(step, low):
        """Forty new prompts, one image each, of saturations from ``low`` to 1."""
        items = [
            RewardItem(f"{step}/{i}", f"g{i}", f"{step}-p{i}", image=Image.new("RGB", (32, 32), c))
            for i, s in enumerate(rng.uniform(low, 1, 40))
            for c in [(255, *[int(255 * (1 - s))] * 2)]
        ]
        return monitor.observe(items, [Score(rng.random()) for _ in items])

    drifts = [observe(step, 0.0).get("monitor/saturation/drift") for step in range(9)]
    assert drifts[:3] == [None] * 3
    assert None not in drifts[3:]
    with pytest.raises(HackingAlarm, match=r"saturation has drifted by \+1"):
        observe(9, 0.8)


def test_what_may_be_chance_is_no_drift():
    """Twelve images of random saturation: their mean moves by more than the limit, by chance."""
    settings = MonitorSettings(window=1, max_equal_groups=1)
    monitor, rng = RewardMonitor(settings), np.random.default_rng(0)

    def flat(low):
        colours = [(255, *[int(255 * (1 - s))] * 2) for s in rng.uniform(low, 1, 12)]
        items = [
            RewardItem(f"s{i}", f"g{i}", f"p{i}", image=Image.new("RGB", (32, 32), colour))
            for i, colour in enumerate(colours)
        ]
        return monitor.observe(items, [Score(1.0)] * 12)

    drifts = [flat(0.0).get("monitor/saturation/drift", 0.0) for _ in range(30)]
    assert max(map(abs, drifts)) > 2 * MAX_DRIFT["saturation"]
    with pytest.raises(HackingAlarm, match="saturation has drifted by"):
        flat(0.999)


class Gold:
    spec = ScorerSpec("gold", "1", (), frozenset({"image"}))

    def score(self, items):
        return [Score(-image_statistics(item.image)["edge_density"]) for item in items]


def test_a_gold_scorer_that_falls_while_the_reward_rises():
    settings = MonitorSettings(max_drift=dict.fromkeys(MAX_DRIFT, 99.0))

    def watch_with(rise):
        monitor = RewardMonitor(settings, Gold())
        for step in range(10):
            hacked = step >= 4
            by = rise * hacked
            monitor.observe(*rollout(step, grid if hacked else None, lambda i, by=by: i % 3 + by))

    with pytest.raises(HackingAlarm, match=r"gold scorer has fallen by .* while the reward rose"):
        watch_with(rise=5.0)
    watch_with(rise=-5.0)  # it falls with the reward: that is no hack


def test_sameness_and_equal_rewards():
    flat = Image.new("RGB", (64, 64), "red")
    caught = watch(lambda image: flat, MonitorSettings(max_drift=dict.fromkeys(MAX_DRIFT, 1e9)))
    assert "images of one prompt differ 0.27 times as much" in caught[1]
    caught = watch(reward=lambda index: 1.0)
    assert "all rewards are equal in 100% of the groups" in caught[1]


def test_a_run_may_be_watched_without_being_stopped():
    monitor = RewardMonitor(MonitorSettings(stop=False))
    figures = {}
    for step in range(8):
        figures = monitor.observe(*rollout(step, grid if step >= 4 else None))
    assert figures["monitor/alarms"] >= 1
    assert figures["monitor/grid_8/drift"] > MAX_DRIFT["grid_8"]
    with pytest.raises(ValueError, match="needs images, sample 'x' has none"):
        monitor.observe([RewardItem("x", "g", "p")], [Score(1.0)])


def test_a_run_that_goes_on_measures_from_the_same_baseline(tmp_path):
    def monitor():
        found = RewardMonitor()
        found.keep_baseline(tmp_path / "monitor.json")
        return found

    first = monitor()
    for step in range(4):
        first.observe(*rollout(step))
    resumed = monitor()
    for step in (4, 5):
        wanted = first.observe(*rollout(step))
        assert resumed.observe(*rollout(step)) == wanted


def test_a_limit_of_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match=r"max_drift names \['colour'\]; .* saturation, contrast"):
        MonitorSettings(max_drift={"colour": 0.1})
    assert set(get_args(Statistic)) == MAX_DRIFT.keys()


def test_statistics_of_simple_pictures():
    red = image_statistics(Image.new("RGB", (64, 64), "red"))
    assert (red["saturation"], red["edge_density"]) == (1.0, 0.0)
    assert red["contrast"] == pytest.approx(0.0, abs=1e-9)
    assert red["colour_entropy"] == 0.0
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    assert image_statistics(Image.fromarray(half))["colour_entropy"] == pytest.approx(1.0)
    assert image_statistics(Image.fromarray(half))["grid_8"] == 0.0  # one edge is no grid


def test_the_contact_sheet_shows_the_highest_reward_first():
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    sheet = contact_sheet(images, [0.1, 0.9, 0.5], columns=2, side=64)
    assert sheet.size == (128, 160)
    assert sheet.getpixel((20, 20)) == (0, 128, 0)
    assert sheet.getpixel((84, 20)) == (0, 0, 255)
