"""A bound on the bytes held at once, granted in the order in which they were asked for."""

from __future__ import annotations

import threading
from collections import deque

from dcp_cloud.errors import TransferCancelledError


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
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

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
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._closed or (self._line[0] is ticket and self._fits(nbytes, own_bytes))
                )
                if self._closed:
                    raise TransferCancelledError("waiting for memory was given up", cause="the transfer has failed")
                self._held_bytes += nbytes
                self._peak_bytes = max(self._peak_bytes, self._held_bytes)
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()

    def release(self, nbytes: int) -> None:
        """Give bytes back.

        Args:
            nbytes: Bytes held no more.
        """
        with self._changed:
            self._held_bytes -= nbytes
            self._changed.notify_all()

    def close(self) -> None:
        """Wake everybody who waits, with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, nbytes: int, own_bytes: int) -> bool:
        return self._held_bytes + nbytes <= self._limit_bytes or self._held_bytes <= own_bytes
