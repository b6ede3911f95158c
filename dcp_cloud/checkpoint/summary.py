"""What a save or load did, in numbers: collected from events, kept as a record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dcp_cloud.transfer.events import EventHook, Phase, PhaseDone, Planned, Progressed, RequestDone, TransferEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSummary:
    """One save or load of one rank.

    Args:
        phase: ``save`` or ``load``.
        uri: Where, without options.
        size_bytes: Payload bytes stored or loaded.
        items: Tensors and byte objects.
        duration_s: Wall time, seconds.
        requests: Requests sent, repeated ones included.
        retries: Requests that were repeated.
        slowest_s: Duration of the slowest request, seconds.
    """

    phase: Phase
    uri: str
    size_bytes: int = 0
    items: int = 0
    duration_s: float = 0.0
    requests: int = 0
    retries: int = 0
    slowest_s: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        """Payload bytes per second of wall time."""
        return self.size_bytes / self.duration_s if self.duration_s else 0.0


class SummaryCollector:
    """Adds up events; a hook that passes everything on to the user's hook.

    Args:
        phase: What is being done.
        uri: Where, without options.
        hook: The user's hook.
        clock: Monotonic time in seconds.
    """

    def __init__(self, phase: Phase, uri: str, hook: EventHook, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._phase: Phase = phase
        self._uri = uri
        self._hook = hook
        self._clock = clock
        self._began_s = clock()
        self._lock = threading.Lock()
        self._size_bytes = 0
        self._items = 0
        self._requests = 0
        self._retries = 0
        self._slowest_s = 0.0

    def __call__(self, event: TransferEvent) -> None:
        """Take note of an event and pass it on."""
        with self._lock:
            if isinstance(event, RequestDone):
                self._requests += 1
                self._retries += event.will_retry
                self._slowest_s = max(self._slowest_s, event.duration_s)
            elif isinstance(event, Progressed):
                self._size_bytes += event.size_bytes
            elif isinstance(event, Planned):
                self._items += event.items
        self._hook(event)

    def end(self, error: BaseException | None = None) -> TransferSummary:
        """Close the books and tell the hook that the phase ended.

        Args:
            error: What ended it early.

        Returns:
            The sums.
        """
        duration_s = self._clock() - self._began_s
        self._hook(PhaseDone(phase=self._phase, duration_s=duration_s, error=type(error).__name__ if error else None))
        with self._lock:
            return TransferSummary(
                phase=self._phase,
                uri=self._uri,
                size_bytes=self._size_bytes,
                items=self._items,
                duration_s=duration_s,
                requests=self._requests,
                retries=self._retries,
                slowest_s=self._slowest_s,
            )
