"""Deadlines for single requests, longer for longer ones: a request that trickles is broken off and tried again.

The wire gives up on a connection that makes no progress at all; this catches the one that makes too little.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

from dcp_cloud.config import KIB
from dcp_cloud.stores.cancel import CancelScope

# A request may wait so long for its first byte, and then bring its bytes at no less than this rate: a twentieth to a
# hundredth of what one connection gives within a cloud (85 to 90 MB/s by Amazon's performance guide).
_GRACE_S = 30.0
_SLOWEST_BYTES_PER_S = 1024 * KIB


def allowed_s(nbytes: int) -> float:
    """Say how long a request may take.

    Args:
        nbytes: Bytes that it moves.

    Returns:
        Seconds.
    """
    return _GRACE_S + nbytes / _SLOWEST_BYTES_PER_S


class Deadlines:
    """Cancels the scopes of requests that take too long, and calls others in time. One thread, started when needed.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def watch(self, scope: CancelScope, within_s: float) -> None:
        """Cancel a scope when its time is over; harmless if what ran in it has ended.

        Args:
            scope: The scope.
            within_s: Its time, seconds from now.
        """
        self.call_in(within_s, scope.cancel)

    def call_in(self, delay_s: float, action: Callable[[], object]) -> None:
        """Do something later, unless the end comes before.

        Args:
            delay_s: Seconds from now.
            action: What to do, on the thread that watches the deadlines; quick.
        """
        with self._changed:
            number = next(self._numbers)
            heapq.heappush(self._heap, (self._clock() + delay_s, number, action))
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="dcp_cloud-deadlines", daemon=True)
                self._thread.start()
            elif self._heap[0][1] == number:
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (action := self._next()) is not None:
            action()

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            while not self._is_closed:
                left_s = self._heap[0][0] - self._clock() if self._heap else None
                if left_s is not None and left_s <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(left_s)
            return None
