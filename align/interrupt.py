"""SIGTERM asks a run to stop: it finishes its step, saves, and exits with the signal's code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_CODE", "StopRequest", "listening"]

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Within, SIGTERM sets the request instead of ending the process.

    Signals reach the main thread alone: elsewhere nothing is listened to, and nothing changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
