"""What a transfer tells of itself while it works: plain records, handed to a hook.

Progress bars, summaries, logs and tests are all made from these. A hook is called from worker threads; it should be
quick and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["save", "load", "commit", "verify", "copy", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDone:
    """One request to a store ended, well or not.

    Args:
        verb: Method of the store or of the upload: ``put_part``, ``get_range``, ``head`` …
        key: Key it concerned; empty for a listing.
        size_bytes: Bytes moved; 0 when it failed.
        duration_s: How long it took, seconds.
        attempt: 1 for the first try.
        error: Type name of the error, or None.
        will_retry: Whether another try follows.
    """

    verb: str
    key: str
    size_bytes: int
    duration_s: float
    attempt: int = 1
    error: str | None = None
    will_retry: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The amount of work became known.

    Args:
        phase: What the work is part of.
        size_bytes: Bytes to move in all.
        items: Tensors and objects to move.
    """

    phase: Phase
    size_bytes: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """Payload bytes arrived for good: in the store, or in the tensor.

    Args:
        phase: What the work is part of.
        size_bytes: Bytes since the last event of this kind.
        items: Items completed since then.
    """

    phase: Phase
    size_bytes: int
    items: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDone:
    """A phase ended.

    Args:
        phase: Which.
        duration_s: How long it took, seconds.
        error: Type name of the error that ended it, or None.
    """

    phase: Phase
    duration_s: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """No request has succeeded for ``TransferConfig.stall_warning_s``; sent again each time that much more has passed.

    Args:
        phase: What is stuck.
        idle_s: Time since the last request that succeeded, or since the beginning, seconds.
        requests: Requests under way, pauses between two tries of one included. 0: the transfer waits for something
            else, its caller or memory.
        verb: Method of the oldest of them; empty if there is none.
        key: Key that it concerns.
        pending_s: How long it has been under way, all its tries together, seconds.
        waits_for_memory: Whether it waits for memory that this or another transfer of the process holds.
    """

    phase: Phase
    idle_s: float
    requests: int
    verb: str = ""
    key: str = ""
    pending_s: float = 0.0
    waits_for_memory: bool = False


TransferEvent: TypeAlias = RequestDone | Planned | Progressed | PhaseDone | Stalled
EventHook: TypeAlias = Callable[[TransferEvent], None]


def ignore_event(event: TransferEvent) -> None:
    """Do nothing: the hook of whoever does not want to know."""


def only_requests(hook: EventHook) -> EventHook:
    """Make a hook that passes on requests and keeps back progress, of work that is a part of another one.

    Args:
        hook: Told of the requests.

    Returns:
        The hook to hand down.
    """

    def pass_on(event: TransferEvent) -> None:
        if isinstance(event, RequestDone):
            hook(event)

    return pass_on
