"""How many requests are in flight at once: as many as pay, fewer when the provider says so.

The bound begins at what suits most networks, grows while more requests at once bring more bytes a second, and stays
where they do not. When the provider asks for fewer requests, or the link is too slow for so many, it is halved; from
there on it grows by one at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dcp_cloud.errors import ThrottledError

# A checkpoint of a gigabyte is 64 requests: it would be over before a lower bound had grown.
_FIRST_BOUND = 32
# More bytes a second than this count as a gain; less is noise.
_GAIN = 1.05
_GROWTH = 1.5
# The best rate seen is forgotten so fast that a changed network is noticed within some dozens of rounds.
_FORGET = 0.98
# Requests that were sent before a cut come back throttled too; they must not cut again.
_CUT_PAUSE_S = 1.0


class Pace:
    """A bound on requests in flight that finds its own level.

    Args:
        max_concurrency: The bound never rises above this.
        clock: Monotonic time in seconds.
    """

    def __init__(self, max_concurrency: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max = max_concurrency
        self._clock = clock
        self._bound = float(min(max_concurrency, _FIRST_BOUND))
        self._in_flight = 0
        self._is_cautious = False
        self._cut_at_s = float("-inf")
        self._best_rate = 0.0
        self._round_began_s = clock()
        self._round_requests = 0
        self._round_bytes = 0
        self._changed = threading.Condition()

    @property
    def bound(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._bound))

    @property
    def in_flight(self) -> int:
        """Requests in flight now."""
        return self._in_flight

    def acquire(self) -> None:
        """Wait until one more request may be sent. Others' progress ends the wait, so it cannot last."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < self.bound)
            self._in_flight += 1

    def release(self, nbytes: int, error: BaseException | None, *, was_too_slow: bool = False) -> None:
        """Take note of the end of a request.

        Args:
            nbytes: Bytes that it moved.
            error: Why it failed, or None.
            was_too_slow: Whether it was broken off because its time was over: fewer at once would be faster each.
        """
        with self._changed:
            self._in_flight -= 1
            if was_too_slow or isinstance(error, ThrottledError):
                self._cut()
            elif error is None and nbytes:
                self._count(nbytes)
            self._changed.notify_all()

    def _cut(self) -> None:
        now_s = self._clock()
        if now_s - self._cut_at_s < _CUT_PAUSE_S:
            return
        self._cut_at_s = now_s
        self._bound = max(1.0, self._bound / 2)
        self._is_cautious = True
        self._begin_round(now_s)

    def _count(self, nbytes: int) -> None:
        self._round_requests += 1
        self._round_bytes += nbytes
        now_s = self._clock()
        if self._round_requests < self.bound or now_s <= self._round_began_s:
            return
        rate = self._round_bytes / (now_s - self._round_began_s)
        if rate > self._best_rate * _GAIN:
            self._bound = min(self._max, self._bound + 1 if self._is_cautious else self._bound * _GROWTH)
        self._best_rate = max(rate, self._best_rate * _FORGET)
        self._begin_round(now_s)

    def _begin_round(self, now_s: float) -> None:
        self._round_began_s = now_s
        self._round_requests = 0
        self._round_bytes = 0
