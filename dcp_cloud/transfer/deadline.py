"""Deadlines for single requests, longer for longer ones: a request that trickles is broken off and tried again.

The wire gives up on a connection that makes no progress at all; this catches the one that makes too little.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType

from typing_extensions import Self

from dcp_cloud.config import KIB

# A request may wait so long for its first byte, and then it and those that share its link have to bring their bytes at
# no less than this rate together. One connection gives a hundred times as much within a cloud (85 to 90 MB/s by
# Amazon's performance guide); a whole office behind one line may have no more.
_GRACE_S = 30.0
_SLOWEST_BYTES_PER_S = 1024 * KIB


def allowed_s(nbytes: int, in_flight: int = 1) -> float:
    """Say how long a request may take.

    Args:
        nbytes: Bytes that it moves.
        in_flight: Requests that move bytes at the same time, this one included: the link is shared among them.

    Returns:
        Seconds.
    """
    return _GRACE_S + nbytes * in_flight / _SLOWEST_BYTES_PER_S


class Deadlines:
    """Calls back when a time is over. One thread, started when it is first needed.

    Nothing that the main thread does here waits for a lock that the thread holds: see :mod:`.workers`.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: SimpleQueue[tuple[float, int, Callable[[], object]] | None] = SimpleQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def call_in(self, delay_s: float, action: Callable[[], object]) -> None:
        """Do something later, unless the end comes before.

        Args:
            delay_s: Seconds from now.
            action: What to do, on the thread that watches the deadlines; quick.
        """
        self._asked.put((self._clock() + delay_s, next(self._numbers), action))
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="dcp_cloud-deadlines", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Let the thread end, without waiting for it."""
        self._is_closed = True
        self._asked.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._thread is not None and self._thread.ident is not None:  # None: a Ctrl-C came while it was started
            self._thread.join()

    def _run(self) -> None:
        pending: list[tuple[float, int, Callable[[], object]]] = []
        while not self._is_closed:
            left_s = pending[0][0] - self._clock() if pending else None
            if left_s is not None and left_s <= 0:
                heapq.heappop(pending)[2]()
                continue
            with suppress(Empty):
                asked = self._asked.get(timeout=left_s)
                if asked is not None:
                    heapq.heappush(pending, asked)
