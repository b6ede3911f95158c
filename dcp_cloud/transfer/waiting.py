"""Waiting in the main thread in a way that a signal always ends."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import TypeVar

ItemT = TypeVar("ItemT")

# A signal that arrives just before a thread goes to sleep does not wake it: Python's handler runs when it next awakes,
# which would be when a request ends. So the sleep is short.
_SLEEP_S = 0.5


def take(queue: SimpleQueue[ItemT]) -> ItemT:
    """Take the next item, waiting as long as it needs; Ctrl-C and other signals are noticed at any moment.

    Args:
        queue: Where from.

    Returns:
        The item.
    """
    while True:
        try:
            return queue.get(timeout=_SLEEP_S)
        except Empty:
            continue
