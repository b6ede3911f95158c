"""Sums over the events of a transfer, to be read at any moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dcp_cloud.transfer.events import (
    EventHook,
    Phase,
    Planned,
    Progressed,
    RequestDone,
    Stalled,
    TransferEvent,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Where a transfer stands.

    Args:
        phase: What is being done.
        done_bytes: Payload that has arrived.
        total_bytes: Payload in all.
        items: Tensors and objects in all.
        elapsed_s: Time since the work was planned, seconds.
        requests: Requests that ended, repeated ones included.
        retries: Requests that were repeated.
        slowest_s: Duration of the slowest request, seconds.
        slowest_key: The key that it concerned.
        stalled_s: How long nothing has succeeded, if the transfer has said that it is stuck, seconds; else 0.
        error: Type name of what ended it, or None.
    """

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0
    items: int = 0
    elapsed_s: float = 0.0
    requests: int = 0
    retries: int = 0
    slowest_s: float = 0.0
    slowest_key: str = ""
    stalled_s: float = 0.0
    error: str | None = None

    @property
    def bytes_per_s(self) -> float:
        """Mean rate since the work was planned."""
        return self.done_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Time that the rest takes at this rate, seconds; None before anything has arrived."""
        rate = self.bytes_per_s
        return (self.total_bytes - self.done_bytes) / rate if rate else None


@dataclass(slots=True)
class _Sums:
    """What one phase adds up to."""

    phase: Phase
    began_s: float
    done_bytes: int = 0
    total_bytes: int = 0
    items: int = 0
    requests: int = 0
    retries: int = 0
    slowest_s: float = 0.0
    slowest_key: str = ""
    stalled_s: float = 0.0
    has_ended: bool = False
    error: str | None = None


class Meter:
    """Adds up events. One meter can serve many transfers, one after the other: each plan begins anew.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sums = _Sums("save", clock())

    def __reduce__(self) -> tuple[type[Meter], tuple[()]]:
        return type(self), ()

    def __call__(self, event: TransferEvent) -> None:
        """Take note of an event."""
        with self._lock:
            if isinstance(event, Planned) and (self._sums.has_ended or event.phase != self._sums.phase):
                self._sums = _Sums(event.phase, self._clock())
            _add(self._sums, event)

    def read(self) -> Reading:
        """Give the sums of now."""
        with self._lock:
            sums = self._sums
            return Reading(
                phase=sums.phase,
                done_bytes=sums.done_bytes,
                total_bytes=sums.total_bytes,
                items=sums.items,
                elapsed_s=self._clock() - sums.began_s,
                requests=sums.requests,
                retries=sums.retries,
                slowest_s=sums.slowest_s,
                slowest_key=sums.slowest_key,
                stalled_s=sums.stalled_s,
                error=sums.error,
            )


def _add(sums: _Sums, event: TransferEvent) -> None:
    if isinstance(event, Planned):
        sums.total_bytes += event.size_bytes
        sums.items += event.items
    elif isinstance(event, Progressed):
        sums.done_bytes += event.size_bytes
        sums.stalled_s = 0.0
    elif isinstance(event, RequestDone):
        sums.requests += 1
        sums.retries += event.will_retry
        if event.duration_s > sums.slowest_s:
            sums.slowest_s, sums.slowest_key = event.duration_s, event.key
    elif isinstance(event, Stalled):
        sums.stalled_s = event.idle_s
    elif event.phase == sums.phase:
        sums.has_ended, sums.error = True, event.error
        if event.error is None:
            sums.total_bytes = sums.done_bytes  # a save plans with an upper bound of what its items take


@dataclass(frozen=True, slots=True)
class _Combined:
    """Hooks that all hear of each event."""

    hooks: tuple[EventHook, ...]

    def __call__(self, event: TransferEvent) -> None:
        for hook in self.hooks:
            hook(event)


def combine(*hooks: EventHook) -> EventHook:
    """Make one hook of several.

    Args:
        *hooks: What to tell of each event, in this order.

    Returns:
        The hook; it pickles if they do.
    """
    return _Combined(hooks)
