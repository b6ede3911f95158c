"""A bound on the bytes that a process holds at once, granted in the order in which they were asked for.

There is one :class:`ByteBudget` per process, since memory belongs to the process: saves and loads that run at the same
time share the bound. Each has an :class:`Account` of its own, so that the failure of one wakes nobody else and gives
back all that it held.

Made of a plain lock and queues, not of a ``Condition``: a Ctrl-C that hits the main thread inside a ``Condition`` can
leave its lock taken, and then the transfer's threads wait for ever.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

from dcp_cloud.errors import TransferCancelledError
from dcp_cloud.transfer.waiting import take


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A place in the line, and where its answer comes: whether the bytes were granted."""

    account: Account
    nbytes: int
    own_bytes: int
    answer: SimpleQueue[bool] = field(default_factory=SimpleQueue)


class ByteBudget:
    """Grants bytes first come, first served; whoever finds too few left waits.

    A request is granted when all that is held stays within the limit of the account that asks. One that would not fit
    is granted nevertheless when nothing can come back otherwise: when all that is held belongs to those who wait, or is
    parked by those who wait for another transfer. So one oversized piece may pass alone, and no size of tensor can
    block a save or load for good.
    """

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything: in a forked child the threads that held and waited are not there any more."""
        self._lock = threading.Lock()
        self._line: deque[_Ticket] = deque()
        # Summed up from the accounts each time: two figures to keep in step could be torn apart by a Ctrl-C.
        self._held: dict[Account, int] = {}
        self._parked: dict[Account, int] = {}
        self._peak_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes held now, by all accounts."""
        return sum(tuple(self._held.values()))

    @property
    def peak_bytes(self) -> int:
        """Most bytes ever held at once."""
        return self._peak_bytes

    def open(self, limit_bytes: int) -> Account:
        """Open an account.

        Args:
            limit_bytes: Bytes that all accounts together may hold when this one is granted some.

        Returns:
            The account. It has to be closed if it was granted anything.
        """
        return Account(self, limit_bytes)

    def _serve(self) -> None:
        """Let on whoever can be let on; the lock is held."""
        while self._line and self._fits(self._line[0]):
            ticket = self._line[0]
            self._grant(ticket.account, ticket.nbytes)
            # Answered before it leaves the line, so that an interruption in between loses nobody.
            ticket.answer.put(True)  # noqa: FBT003 - the answer is a bare yes
            self._line.popleft()

    def _fits(self, ticket: _Ticket) -> bool:
        held = self.held_bytes
        if held + ticket.nbytes <= ticket.account.limit_bytes:
            return True
        return held <= sum(self._parked.values()) + sum(waiting.own_bytes for waiting in self._line)

    def _grant(self, account: Account, nbytes: int) -> None:
        self._held[account] = held = self._held.get(account, 0) + nbytes
        account.peak_bytes = max(account.peak_bytes, held)
        self._peak_bytes = max(self._peak_bytes, self.held_bytes)


class Account:
    """What one transfer holds of the process's budget.

    Only threads that produce work may wait here, never those that work it off: what a worker needs is acquired before
    the work is handed out, so whatever was handed out ends and gives its bytes back.

    Args:
        budget: The budget.
        limit_bytes: Bytes that all accounts together may hold when this one is granted some.

    Attributes:
        peak_bytes: Most bytes that this account ever held at once.
    """

    def __init__(self, budget: ByteBudget, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self._budget = budget
        self._is_cancelled = False
        self._is_closed = False

    @property
    def held_bytes(self) -> int:
        """Bytes that this account holds now."""
        return self._budget._held.get(self, 0)

    @property
    def is_waiting(self) -> bool:
        """Whether somebody waits for bytes."""
        return any(ticket.account is self for ticket in tuple(self._budget._line))

    def acquire(self, nbytes: int, *, own_bytes: int = 0) -> None:
        """Wait for a grant.

        Args:
            nbytes: Bytes to hold from now on.
            own_bytes: Bytes already held that only this asker's progress can release. They do not count as a reason
                to wait, since waiting for oneself would never end.

        Raises:
            TransferCancelledError: The account was cancelled.
        """
        budget, ticket = self._budget, _Ticket(self, nbytes, own_bytes)
        is_granted = False
        try:
            with budget._lock:
                if not self._is_cancelled:
                    budget._line.append(ticket)
                    budget._serve()
                else:
                    ticket.answer.put(False)  # noqa: FBT003 - the answer is a bare no
            is_granted = take(ticket.answer)
        except BaseException:  # a Ctrl-C
            self._give_up(ticket)
            raise
        if not is_granted:
            raise TransferCancelledError("waiting for memory was given up", cause="the transfer has failed")

    def try_acquire(self, nbytes: int) -> bool:
        """Take bytes if they are to be had at once, before nobody who waits.

        Args:
            nbytes: Bytes to hold from now on.

        Returns:
            Whether they were granted.
        """
        with self._budget._lock:
            fits = self._budget.held_bytes + nbytes <= self.limit_bytes
            is_granted = fits and not self._budget._line and not self._is_cancelled
            if is_granted:
                self._budget._grant(self, nbytes)
        return is_granted

    def release(self, nbytes: int) -> None:
        """Give bytes back.

        Args:
            nbytes: Bytes held no more.
        """
        with self._budget._lock:
            if not self._is_closed:
                self._budget._grant(self, -nbytes)
                self._budget._serve()

    @contextmanager
    def parked(self, nbytes: int) -> Iterator[None]:
        """Declare, while a transfer with another account runs, what cannot be released before that has ended.

        The one thread that produces this account's work runs the other transfer within the block. Its bytes are held
        all the same, but whoever waits for memory must not wait for them.

        Args:
            nbytes: Bytes of this account that only the thread of the block can release.
        """
        budget = self._budget
        try:
            with budget._lock:
                budget._parked[self] = nbytes
                budget._serve()
            yield
        finally:
            with budget._lock:
                budget._parked.pop(self, None)

    def cancel(self) -> None:
        """Send away everybody who waits or comes, with an error; what is held stays held until ``close``."""
        with self._budget._lock:
            self._is_cancelled = True
            for ticket in [ticket for ticket in self._budget._line if ticket.account is self]:
                ticket.answer.put(False)  # noqa: FBT003 - the answer is a bare no
                self._budget._line.remove(ticket)
            self._budget._serve()

    def close(self) -> None:
        """Give everything back. Call it when the memory is gone: after the transfer's threads have ended."""
        self.cancel()
        with self._budget._lock:
            self._is_closed = True
            self._budget._held.pop(self, None)
            self._budget._parked.pop(self, None)
            self._budget._serve()

    def _give_up(self, ticket: _Ticket) -> None:
        with self._budget._lock:
            if ticket in self._budget._line:
                self._budget._line.remove(ticket)
            elif not ticket.answer.empty() and ticket.answer.get() and not self._is_closed:
                self._budget._grant(self, -ticket.nbytes)
            self._budget._serve()


# The one object in the package that changes and belongs to the process, because the memory that it counts does
# (docs/adr/0004-one-memory-budget.md). Nothing else is reached through it, and a forked child starts with its own.
PROCESS_BUDGET: Final = ByteBudget()
os.register_at_fork(after_in_child=PROCESS_BUDGET.start_anew)
