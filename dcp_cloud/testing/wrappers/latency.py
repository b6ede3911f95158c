"""A store that is as far away as you say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from dcp_cloud.stores.base import ObjectData, ObjectStore
from dcp_cloud.testing.wrappers.base import Request, StoreWrapper

ResultT = TypeVar("ResultT")


class LatencyStore(StoreWrapper):
    """Makes every request take the time that a distant store takes; requests do not slow one another down.

    Args:
        store: The wrapped store.
        first_byte_s: Seconds until a request's first byte.
        bytes_per_s: Rate of one connection, bytes per second; None for no bound.
    """

    def __init__(self, store: ObjectStore, *, first_byte_s: float, bytes_per_s: float | None = None) -> None:
        super().__init__(store)
        self.first_byte_s = first_byte_s
        self.bytes_per_s = bytes_per_s

    def around(self, request: Request, run: Callable[[], ResultT]) -> ResultT:
        """Wait, make the request, and wait for its bytes."""
        time.sleep(self.first_byte_s)
        result = run()
        if self.bytes_per_s is not None:
            moved = len(result.data) if isinstance(result, ObjectData) else request.size_bytes
            time.sleep(moved / self.bytes_per_s)
        return result
