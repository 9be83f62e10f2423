"""Flow-GRPO with its reward behind HTTP: what a server's failures do to a run."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from run_data import grpo_config, losses, write_data

from align.online import train_grpo
from rewards.base import Score, ScorerSpec, ScoringError
from rewards.contact_sheets import read_sheets
from rewards.failures import RewardSource
from rewards.monitors import HackingAlarm, MonitorSettings, RewardMonitor
from rewards.service.client import ClientSettings, RemoteScorer
from rewards.service.schema import WireScore
from rewards.service.server import RewardServer, ServerSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


class Moody:
    """Scores the mean grey plus 1000, so that no true score is near 0; does ``deed`` now and then.

    ``deed(call, item)`` may raise, wait, or return a score instead.
    """

    spec = ScorerSpec("moody", "1", (), frozenset({"image"}))

    def __init__(self, deed):
        self.deed = deed
        self.given: dict[str, float] = {}
        self.calls = 0

    def score(self, items):
        self.calls += 1
        scores = [self.deed(self.calls, item) or self._true(item) for item in items]
        for item, score in zip(items, scores, strict=True):
            if score.value is not None:
                self.given[item.sample_id] = score.value
        return scores

    def _true(self, item):
        pixels = item.image.convert("L").tobytes()
        return Score(1000.0 + sum(pixels) / len(pixels))


class Recording(RewardSource):
    """A source that keeps what it gave to the trainer."""

    def score(self, items):
        scores = super().score(items)
        self.given = getattr(self, "given", {}) | {
            item.sample_id: score.value
            for item, score in zip(items, scores, strict=True)
            if score is not None
        }
        return scores


class Liar(RewardServer):
    """From its third answer on, zeros for samples that nobody asked about."""

    count = 0

    def answer(self, request):
        self.count += 1
        response = super().answer(request)
        if self.count < 3:
            return response
        zeros = [WireScore(sample_id="x", value=0.0) for _ in response.scores]
        return response.model_copy(update={"scores": zeros})


def run(data, model, folder, deed, on_failure, server_type=RewardServer, deadline=60.0):
    """Three rollouts of 2 x 4 images, a request a group; the metrics, and what stopped the run."""
    settings = ClientSettings(batch_size=4, concurrency=1, attempts=1, deadline=deadline)
    scorer = Moody(deed)
    stopped = ""
    with server_type(lambda: [scorer], ServerSettings(request_timeout=60)) as server:
        server.wait_until_ready()
        source = Recording(RemoteScorer(server.url, settings=settings), on_failure, 0.9)
        try:
            train_grpo(grpo_config(data, model, folder, max_steps=3, save_every=0), source)
        except ScoringError as error:
            stopped = str(error)
    # Whatever happened: every reward that the trainer saw is one that the scorer gave.
    assert source.given.items() <= scorer.given.items()
    assert all(value >= 1000 for value in source.given.values())
    return losses(folder), stopped


def failing(call, item):
    if call == 3:
        raise RuntimeError("out of memory")
    if call == 5 and item.sample_id.endswith("/1"):
        return Score(None, error="no text found")
    return None


@pytest.mark.parametrize(
    ("on_failure", "shares"), [("drop_sample", [0, 0.5, 0.125]), ("drop_group", [0, 0.5, 0.5])]
)
def test_failed_samples_are_dropped_as_told(data, untrained_folder, tmp_path, on_failure, shares):
    rows, stopped = run(data, untrained_folder, tmp_path / "run", failing, on_failure)
    assert not stopped
    assert [rows[step]["reward/frac_failed"] for step in (1, 2, 3)] == shares
    assert all(row["reward"] > 1000 for row in rows.values())


class Dying(RewardServer):
    """Leaves its third request, the first of the second rollout, without an answer, and is gone."""

    count = 0

    def answer(self, request):
        self.count += 1
        if self.count == 3:
            threading.Thread(target=self.__exit__, args=[None] * 3).start()
            raise ConnectionAbortedError("the server dies")
        return super().answer(request)


def hang(call, item):
    if call == 3 and item.sample_id.endswith("/0"):
        time.sleep(20)
    return None


def slow(call, item):
    time.sleep(0.02)
    return None


@pytest.mark.parametrize(
    ("deed", "server_type", "message"),
    [
        (failing, RewardServer, "status 500: scorer 'moody' failed: RuntimeError: out of memory"),
        (hang, RewardServer, "no answer within"),
        (slow, Dying, "no answer after 1 attempts"),
        (slow, Liar, "answered for other samples than those asked for"),
    ],
)
def test_a_failure_stops_the_run_and_names_the_sample(
    data, untrained_folder, tmp_path, deed, server_type, message
):
    rows, stopped = run(
        data, untrained_folder, tmp_path / "run", deed, "raise", server_type, deadline=5
    )
    assert rows.keys() == {1}
    assert "failed on sample '0/" in stopped
    assert message in stopped


def test_an_alarm_of_the_monitor_stops_the_run_with_the_reason(data, untrained_folder, tmp_path):
    folder = tmp_path / "run"
    scorer = Moody(lambda call, item: None)
    # No picture can differ so much: the second rollout, the first after the baseline, is beyond.
    settings = MonitorSettings(baseline=1, window=1, min_diversity=1e6)
    source = RewardSource(scorer, monitor=RewardMonitor(settings))
    config = grpo_config(data, untrained_folder, folder, max_steps=3, save_every=0)
    with pytest.raises(HackingAlarm, match="rollout 2: images of one prompt differ"):
        train_grpo(config, source)
    rows = losses(folder)
    assert rows.keys() == {1}
    assert 0 <= rows[1]["monitor/saturation"] <= 1
    assert (folder / "monitor-0.json").is_file()
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "stopped"
    assert info["hacking_alarm"].startswith("rollout 2: images of one prompt differ")
    (sheet,) = read_sheets(folder).values()
    assert (sheet.rollout, sheet.reason) == (2, info["hacking_alarm"])
    assert [len(task.rewards) for task in sheet.tasks] == [4, 4]  # every prompt
