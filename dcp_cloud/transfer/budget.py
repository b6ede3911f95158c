"""A bound on the bytes held at once, granted in the order in which they were asked for.

Made of a plain lock and queues, not of a ``Condition``: a Ctrl-C that hits the main thread inside a ``Condition`` can
leave its lock taken, and then the transfer's threads wait for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue

from dcp_cloud.errors import TransferCancelledError


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A place in the line, and where its answer comes: whether the bytes were granted."""

    nbytes: int
    own_bytes: int
    answer: SimpleQueue[bool] = field(default_factory=SimpleQueue)


class ByteBudget:
    """Grants bytes first come, first served; whoever finds too few left waits.

    A request larger than the whole budget is granted when nothing but the asker's own bytes is held: one oversized
    piece may pass alone, so that no size of tensor can block a save or load for good.

    Args:
        limit_bytes: Bytes that may be held at once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._peak_bytes = 0
        self._closed = False
        self._lock = threading.Lock()
        self._line: deque[_Ticket] = deque()

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._held_bytes

    @property
    def peak_bytes(self) -> int:
        """Most bytes ever held at once."""
        return self._peak_bytes

    def acquire(self, nbytes: int, *, own_bytes: int = 0) -> None:
        """Wait for a grant.

        Args:
            nbytes: Bytes to hold from now on.
            own_bytes: Bytes already held that only this asker's progress can release. They do not count as a reason
                to wait, since waiting for oneself would never end.

        Raises:
            TransferCancelledError: The budget was closed.
        """
        ticket = _Ticket(nbytes, own_bytes)
        try:
            with self._lock:
                self._line.append(ticket)
                self._serve()
            is_granted = ticket.answer.get()
        except BaseException:  # a Ctrl-C
            self._give_up(ticket)
            raise
        if not is_granted:
            raise TransferCancelledError("waiting for memory was given up", cause="the transfer has failed")

    def release(self, nbytes: int) -> None:
        """Give bytes back.

        Args:
            nbytes: Bytes held no more.
        """
        with self._lock:
            self._held_bytes -= nbytes
            self._serve()

    def close(self) -> None:
        """Send away everybody who waits or comes, with an error."""
        with self._lock:
            self._closed = True
            self._serve()

    def _serve(self) -> None:
        """Answer the head of the line as long as there is something to say; the lock is held."""
        while self._line and (self._closed or self._fits(self._line[0])):
            ticket = self._line[0]
            if not self._closed:
                self._held_bytes += ticket.nbytes
                self._peak_bytes = max(self._peak_bytes, self._held_bytes)
            # Answered before it leaves the line, so that an interruption in between loses nobody.
            ticket.answer.put(not self._closed)
            self._line.popleft()

    def _fits(self, ticket: _Ticket) -> bool:
        return self._held_bytes + ticket.nbytes <= self._limit_bytes or self._held_bytes <= ticket.own_bytes

    def _give_up(self, ticket: _Ticket) -> None:
        with self._lock:
            if ticket in self._line:
                self._line.remove(ticket)
            elif not ticket.answer.empty() and ticket.answer.get():
                self._held_bytes -= ticket.nbytes
            self._serve()
