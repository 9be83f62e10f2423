"""SIGTERM and Ctrl-C ask a run to stop: it finishes its step, saves, and exits with their code."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "listening"]


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def is_set(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        """Of the signal; of SIGTERM where another process of the launch was asked."""
        return (self.signal or signal.SIGTERM).name

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended."""
        return 128 + (self.signal or signal.SIGTERM)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.signal == signal.SIGINT:
                raise KeyboardInterrupt
            # print() is not reentrant, and a signal may have come in the middle of one.
            os.write(2, b"\nstopping once this step is saved; Ctrl-C again stops at once\n")
        self.signal = signal.Signals(number)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Within, SIGTERM and a first Ctrl-C set the request instead of ending the process.

    Signals reach the main thread alone: elsewhere nothing is listened to, and nothing changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
