"""Whose turn it is: a writer serves one save at a time, a reader one load.

``dcp.async_save`` runs each save in a thread of its own. A program that does not wait for the one before it lets two of
them drive one writer, and the later one moves the writer to its own place. Each thread therefore remembers what it has
begun itself, and hears that it was overtaken instead of working at a place that it never asked for.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from dcp_cloud.errors import ConfigError

ValueT = TypeVar("ValueT")


class Turn(Generic[ValueT]):
    """What was begun last, and what each thread has begun.

    Hold ``lock`` while a turn is taken and the object moves to another place, so that both belong to one thread.

    Args:
        first: What is under way as long as no thread has begun anything.
    """

    def __init__(self, first: ValueT) -> None:
        self.lock = threading.RLock()
        self.current = first
        # Not a table by thread id: the id of a thread that ended is given to the next one.
        self._begun = threading.local()

    @property
    def own(self) -> ValueT:
        """What this thread has begun; what was begun last, in a thread that has begun nothing."""
        mine: list[ValueT] = getattr(self._begun, "mine", [])
        return mine[0] if mine else self.current

    def take(self, value: ValueT) -> ValueT:
        """Begin something in this thread.

        Args:
            value: What is begun.

        Returns:
            The same.
        """
        self.current = value
        self._begun.mine = [value]
        return value

    def leave(self) -> None:
        """Forget what this thread has begun, since it has ended."""
        self._begun.mine = []

    def check(self, what: str, *, key: str, hint: str) -> ValueT:
        """See that no other thread has begun anything since this one has.

        Args:
            what: A save or a load, and by whom, for the message.
            key: Its place, for the message.
            hint: What to do about it.

        Returns:
            What is under way.

        Raises:
            ConfigError: Another thread has.
        """
        if self.own is not self.current:
            self.leave()  # it is over for this thread, which may begin anew
            raise ConfigError(f"another {what}, so this one was given up", key=key, hint=hint)
        return self.current
