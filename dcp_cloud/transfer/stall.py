"""Saying so when a transfer makes no progress: what it waits for, and since when."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dcp_cloud.transfer.deadline import Deadlines
from dcp_cloud.transfer.events import EventHook, Phase, Stalled

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A request under way."""

    verb: str
    key: str
    began_s: float


class StallWatch:
    """Knows what is under way, and warns when nothing has succeeded for too long.

    Args:
        phase: What the transfer is part of.
        after_s: Time without a success that is worth a warning, seconds; 0 for never.
        hook: Told of it.
        waits_for_memory: Whether the transfer waits for memory now.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        phase: Phase,
        after_s: float,
        hook: EventHook,
        waits_for_memory: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._phase: Phase = phase
        self._after_s = after_s
        self._hook = hook
        self._waits_for_memory = waits_for_memory
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[_Pending, None] = {}  # by age
        self._progress_s = clock()
        self._told_s = self._progress_s

    @contextmanager
    def request(self, verb: str, key: str) -> Iterator[None]:
        """Run a request, all its tries, within this context.

        Args:
            verb: Method of the store.
            key: Key it concerns.
        """
        pending = _Pending(verb, key, self._clock())
        with self._lock:
            self._pending[pending] = None
        try:
            yield
            self._progress_s = self._clock()
        finally:
            with self._lock:
                self._pending.pop(pending, None)

    def watch(self, deadlines: Deadlines) -> None:
        """Look at once whether to warn, and again when the next warning could be due.

        Args:
            deadlines: Calls in time, until it is closed.
        """
        if not self._after_s:
            return
        quiet_since_s = max(self._progress_s, self._told_s)
        left_s = quiet_since_s + self._after_s - self._clock()
        if left_s <= 0:
            self._warn()
            left_s = self._after_s
        deadlines.call_in(left_s, lambda: self.watch(deadlines))

    def _warn(self) -> None:
        now_s = self._told_s = self._clock()
        with self._lock:
            requests, oldest = len(self._pending), next(iter(self._pending), None)
        event = Stalled(
            phase=self._phase,
            idle_s=now_s - self._progress_s,
            requests=requests,
            verb="" if oldest is None else oldest.verb,
            key="" if oldest is None else oldest.key,
            pending_s=0.0 if oldest is None else now_s - oldest.began_s,
            waits_for_memory=self._waits_for_memory(),
        )
        logger.warning("the %s has made no progress for %.0f s: %s", event.phase, event.idle_s, _explain(event))
        self._hook(event)


def _explain(event: Stalled) -> str:
    if event.requests:
        oldest = f"{event.verb} {event.key}".strip()
        return f"{event.requests} requests are under way, the oldest, {oldest}, for {event.pending_s:.0f} s"
    if event.waits_for_memory:
        return "it waits for memory that other saves and loads of this process hold"
    return "no request is under way, it waits for the planner or the training loop"
