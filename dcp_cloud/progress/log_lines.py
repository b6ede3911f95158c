"""Progress as lines of a log, for jobs that nobody watches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from dcp_cloud.progress.meter import Meter, Reading
from dcp_cloud.transfer.events import PhaseDone, Planned, Stalled, TransferEvent


class LogProgress:
    """Logs the plan, then where the transfer stands every so often, then how it ended.

    Args:
        logger: Name of the logger.
        every_s: Time between two lines, seconds; at least 0.
        level: Level of the lines; stalls and failures are warnings.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        logger: str = "dcp_cloud.progress",
        every_s: float = 10.0,
        level: int = logging.INFO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = logger
        self._every_s = every_s
        self._level = level
        self._clock = clock
        self._logger = logging.getLogger(logger)
        self._meter = Meter(clock=clock)
        self._lock = threading.Lock()
        self._next_s = math.inf  # nothing was planned yet

    def __reduce__(self) -> tuple[object, ...]:
        return _log_progress, (self._name, self._every_s, self._level)

    def __call__(self, event: TransferEvent) -> None:
        """Log an event if it is time to."""
        self._meter(event)
        if isinstance(event, Planned):
            self._next_s = self._clock() + self._every_s
            self._logger.log(self._level, "%s: %d items, %s", event.phase, event.items, _size(event.size_bytes))
        elif isinstance(event, Stalled):
            self._logger.warning("%s: nothing has succeeded for %.0f s (%s)", event.phase, event.idle_s, _waits(event))
        elif isinstance(event, PhaseDone):
            self._end(event)
        elif self._is_due():
            self._logger.log(self._level, "%s", _line(self._meter.read()))

    def _is_due(self) -> bool:
        with self._lock:
            now_s = self._clock()
            if now_s < self._next_s:
                return False
            self._next_s = now_s + self._every_s
            return True

    def _end(self, event: PhaseDone) -> None:
        self._next_s = math.inf
        reading = self._meter.read()
        if event.error is not None:
            self._logger.warning("%s failed after %.1f s: %s", event.phase, event.duration_s, event.error)
        elif event.phase != reading.phase:
            self._logger.log(self._level, "%s done in %.1f s", event.phase, event.duration_s)
        else:
            self._logger.log(
                self._level,
                "%s done: %s in %.1f s (%s/s), %d requests, %d repeated, slowest %.1f s",
                event.phase,
                _size(reading.done_bytes),
                event.duration_s,
                _size(reading.done_bytes / max(event.duration_s, 1e-9)),
                reading.requests,
                reading.retries,
                reading.slowest_s,
            )


def _log_progress(logger: str, every_s: float, level: int) -> LogProgress:
    return LogProgress(logger=logger, every_s=every_s, level=level)


def _line(reading: Reading) -> str:
    share = reading.done_bytes / reading.total_bytes if reading.total_bytes else 1.0
    left = "" if reading.left_s is None else f", about {max(reading.left_s, 0.0):.0f} s left"
    retries = f", {reading.retries} requests repeated" if reading.retries else ""
    return (
        f"{reading.phase}: {_size(reading.done_bytes)} of {_size(reading.total_bytes)} ({share:.0%}), "
        f"{_size(reading.bytes_per_s)}/s{left}{retries}"
    )


def _waits(event: Stalled) -> str:
    if event.waits_for_memory:
        return "waiting for memory that other transfers hold"
    if not event.requests:
        return "waiting for the program"
    return f"{event.requests} requests under way, the oldest {event.verb} {event.key} for {event.pending_s:.0f} s"


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"
