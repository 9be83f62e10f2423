"""A pause after too many wrong passwords, for a name at an address and for an address."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from annotate.web.config import LoginThrottle

MAX_KEYS = 10_000


class FailureLog:
    """Failures of the last minutes, in memory: a restart forgives them."""

    def __init__(self, limits: LoginThrottle, clock: Callable[[], float] = time.monotonic):
        self._limits = limits
        self._clock = clock
        self._failures: dict[tuple[str, ...], deque[float]] = {}
        self._lock = threading.Lock()

    def wait_s(self, address: str, name: str) -> int:
        """Whole seconds until this name may be tried again from this address; 0 is now."""
        limits = self._limits
        with self._lock:
            waits = (
                self._wait((address, name.casefold()), limits.max_failures),
                self._wait((address,), limits.max_failures_per_address),
            )
        return math.ceil(max(waits))

    def add(self, address: str, name: str) -> None:
        """Note an attempt; `clear` takes it back when the password was right."""
        now = self._clock()
        with self._lock:
            for key in ((address, name.casefold()), (address,)):
                times = self._failures.pop(key, deque())
                times.append(now)
                self._failures[key] = times  # the keys stand in the order of their last failure
            while len(self._failures) > MAX_KEYS:
                del self._failures[next(iter(self._failures))]

    def __len__(self) -> int:
        """How many names and addresses are remembered; `MAX_KEYS` at most."""
        return len(self._failures)

    def clear(self, address: str, name: str) -> None:
        """After a right password: forget this attempt, and the name's earlier failures."""
        with self._lock:
            self._failures.pop((address, name.casefold()), None)
            if of_address := self._failures.get((address,)):
                of_address.pop()

    def _wait(self, key: tuple[str, ...], allowed: int) -> float:
        now = self._clock()
        times = self._failures.get(key)
        if not times:
            return 0.0
        while times and times[0] <= now - self._limits.window_s:
            times.popleft()
        if len(times) < allowed:
            return 0.0
        return times[-allowed] + self._limits.window_s - now
