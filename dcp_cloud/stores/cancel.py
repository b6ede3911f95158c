"""Breaking off requests that are under way.

A scope collects what the threads that have entered it are waiting for; cancelling it breaks all of that off, at once
and from any thread. Scopes nest: what waits in an inner scope is broken off by the outer ones too. A store that knows
nothing of scopes works as before, its requests just run to their end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TypeAlias

from typing_extensions import Self

BreakOff: TypeAlias = Callable[[], None]


class CancelScope:
    """Requests that end together when nobody wants their result any more.

    Args:
        parent: The scope around it; None for an outermost one.
    """

    def __init__(self, parent: CancelScope | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._waiting: set[BreakOff] = set()
        self._entered = threading.local()
        self.event = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether this scope or one around it was cancelled."""
        return self.event.is_set() or (self._parent is not None and self._parent.is_cancelled)

    def cancel(self) -> None:
        """Break off everything that is under way in this scope. Doing it again breaks off what came since."""
        self.event.set()
        with self._lock:
            waiting = tuple(self._waiting)
        for break_off in waiting:
            break_off()

    def add(self, break_off: BreakOff) -> None:
        """Take note of something under way; it is broken off right away if the scope is cancelled already.

        Args:
            break_off: Ends it; may be called from any thread, more than once, and after its end.
        """
        with self._lock:
            self._waiting.add(break_off)
        if self._parent is not None:
            self._parent.add(break_off)
        if self.event.is_set():
            break_off()

    def remove(self, break_off: BreakOff) -> None:
        """Forget something that has ended.

        Args:
            break_off: What was added.
        """
        with self._lock:
            self._waiting.discard(break_off)
        if self._parent is not None:
            self._parent.remove(break_off)

    def __enter__(self) -> Self:
        tokens: list[Token[CancelScope | None]] = getattr(self._entered, "tokens", [])
        tokens.append(_CURRENT.set(self))
        self._entered.tokens = tokens
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._entered.tokens.pop())


def current_scope() -> CancelScope | None:
    """Give the innermost scope that this thread has entered."""
    return _CURRENT.get()


_CURRENT: ContextVar[CancelScope | None] = ContextVar("dcp_cloud_cancel_scope", default=None)
