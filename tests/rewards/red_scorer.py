"""A scorer whose true scores are known, and a client for it."""

from __future__ import annotations

import threading
from dataclasses import replace

from PIL import Image

from rewards.base import RewardItem, Score, ScorerSpec
from rewards.service.client import ClientSettings, RemoteScorer


class Red:
    """Scores the red of the first pixel plus 1: no true value is ever 0."""

    spec = ScorerSpec("red", "1", ("red",), frozenset({"image"}), "pixels")

    def __init__(self):
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def score(self, items):
        self.calls += 1
        self.gate.wait()
        if any(item.prompt == "explode" for item in items):
            raise RuntimeError("out of memory")
        return [truth(item) for item in items]


def truth(item):
    if item.prompt == "refuse":
        return Score(None, error="no face found")
    if item.prompt == "not mine":
        return Score(None)
    red = float(item.image.getpixel((0, 0))[0])
    return Score(red + 1, {"red": red}, sigma=0.5, truncated=int(red) % 3)


def item(index, prompt="p"):
    image = Image.new("RGB", (9, 7), (index, 1, 2))
    return RewardItem(f"s{index}", "g", prompt, image=image, metadata={"lang": "zh", "字": "春"})


ITEMS = [item(index) for index in range(5)]
QUICK = ClientSettings(deadline=5, backoff=0.01, batch_size=2)


def hasty(url, deadline, **options):
    """A client that waits this long for scores, and as long as it takes for the server's name."""
    remote = RemoteScorer(url, settings=ClientSettings(**options))
    remote.settings = replace(remote.settings, deadline=deadline)
    return remote


HEALTH = {
    "wire": 3,
    "ready": True,
    "scorers": [
        {
            "name": "red",
            "version": "1",
            "components": ["red"],
            "backbone": "",
            "groupwise": False,
        }
    ],
}
"""What ``/v1/health`` says of it, written down here."""
