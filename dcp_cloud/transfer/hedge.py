"""Racing slow requests: one that takes much longer than its peers is sent a second time, and the first answer counts.

Amazon's performance guide advises to retry the slowest few per cent of requests on a new connection; the loser of a
race is broken off, so its connection is never reused.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from dcp_cloud.stores.cancel import CancelScope, current_scope

ResultT = TypeVar("ResultT")

# Peers to compare with before any request can be called slow.
_MIN_SAMPLES = 8
_SAMPLES = 64
# Slow is three times the median, and never less than half a second: short requests vary by themselves.
_SLOW_FACTOR = 3.0
_MIN_SLOW_S = 0.5
# At most one request in twenty is sent twice, plus one so that a short transfer can have its race.
_SHARE = 0.05
_LOOK_EVERY_S = 0.1


class Hedger:
    """Runs requests, and runs those that lag behind a second time.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._samples: deque[tuple[int, float]] = deque(maxlen=_SAMPLES)
        self._races: set[_Race[Any]] = set()
        self._seconds: list[threading.Thread] = []
        self._done = 0
        self._watcher: threading.Thread | None = None
        self._is_closed = False

    def close(self) -> None:
        """Send nothing a second time from now on, and let the thread end, without waiting for it."""
        self._is_closed = True
        self._wake.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._watcher is not None:
            self._watcher.join()
        for second in self._seconds:  # losers were broken off; they must be gone before the caller reuses its memory
            second.join()

    @property
    def hedges(self) -> int:
        """Requests that were sent a second time."""
        return len(self._seconds)

    def run(self, request: Callable[[int], ResultT], nbytes: int, *, awaits_loser: bool = False) -> ResultT:
        """Run a request on this thread, and a second time on another one if it is slow.

        Args:
            request: Called with 0, and with 1 for the second run; the two may run at once.
            nbytes: Bytes that it moves; longer requests may take longer.
            awaits_loser: Return only when both runs are gone.

        Returns:
            What the first run to succeed returned.

        Raises:
            BaseException: What the first run raised, if no second run succeeded.
        """
        race = _Race(request, nbytes, self._clock())
        self._begin(race)
        try:
            result = race.run_first()
        finally:
            self._end(race)
        if awaits_loser:
            race.await_second()
        return result

    def _begin(self, race: _Race[ResultT]) -> None:
        with self._lock:
            self._races.add(race)
            if self._watcher is None and len(self._samples) >= _MIN_SAMPLES:
                self._watcher = threading.Thread(target=self._watch, name="dcp_cloud-hedge", daemon=True)
                self._watcher.start()

    def _end(self, race: _Race[ResultT]) -> None:
        with self._lock:
            self._races.discard(race)
            self._samples.append((race.nbytes, self._clock() - race.began_s))
            self._done += 1

    def _watch(self) -> None:
        while not self._is_closed:
            with suppress(Empty):
                self._wake.get(timeout=_LOOK_EVERY_S)
            with self._lock:
                for race in self._slow_races():
                    if self._may_race():
                        self._seconds.append(race.start_second())

    def _may_race(self) -> bool:
        return not self._is_closed and len(self._seconds) <= self._done * _SHARE

    def _slow_races(self) -> list[_Race[Any]]:
        """Find what takes too long; the lock is held, so it must not take long itself."""
        now_s = self._clock()
        late = [race for race in self._races if not race.has_second and now_s - race.began_s > _MIN_SLOW_S]
        if not late or len(self._samples) < _MIN_SAMPLES:
            return []
        duration_s = statistics.median(duration_s for _, duration_s in self._samples)
        length = max(statistics.median(nbytes for nbytes, _ in self._samples), 1)
        return [
            race for race in late if now_s - race.began_s > _SLOW_FACTOR * duration_s * max(1.0, race.nbytes / length)
        ]


class _Race(Generic[ResultT]):
    """A request that runs once or twice.

    Args:
        request: The request.
        nbytes: Bytes that it moves.
        began_s: When it began.
    """

    def __init__(self, request: Callable[[int], ResultT], nbytes: int, began_s: float) -> None:
        self.nbytes = nbytes
        self.began_s = began_s
        self._request = request
        self._scopes = (CancelScope(current_scope()), CancelScope(current_scope()))
        self._second: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_won = False
        self._results: list[ResultT] = []

    @property
    def has_second(self) -> bool:
        """Whether it was sent a second time."""
        return self._second is not None

    def run_first(self) -> ResultT:
        """Run it on this thread; give the result of whichever run succeeds first."""
        try:
            with self._scopes[0]:
                result = self._request(0)
        except BaseException:
            self.await_second()
            if self._results:
                return self._results[0]
            raise
        self._win(1)
        return result

    def await_second(self) -> None:
        """Wait until the second run, if there is one, is gone."""
        if self._second is not None:
            self._second.join()

    def start_second(self) -> threading.Thread:
        """Run it again on a thread of its own."""
        self._second = threading.Thread(target=self._run_second, name="dcp_cloud-second", daemon=True)
        self._second.start()
        return self._second

    def _run_second(self) -> None:
        try:
            with self._scopes[1]:
                result = self._request(1)
        except BaseException:  # the first run goes on, and its outcome counts
            return
        self._results.append(result)
        self._win(0)

    def _win(self, loser: int) -> None:
        with self._lock:
            is_first = not self._is_won
            self._is_won = True
        if is_first:
            self._scopes[loser].cancel()
