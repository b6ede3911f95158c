"""Counts what one save or load of one rank does, requests for the commit included, and tells of it."""

from __future__ import annotations

import threading
import time
from typing import Literal

from dcp_cloud.demo.messages import MessageWriter
from dcp_cloud.transfer.events import Planned, Progressed, RequestDone, TransferEvent


class Meter:
    """A hook for a writer or reader.

    Args:
        what: Which of the two it is for.
        step: Step of the checkpoint.
        tell: Takes messages.
    """

    def __init__(self, what: Literal["save", "load"], step: int, tell: MessageWriter) -> None:
        self._what = what
        self._step = step
        self._tell = tell
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._size_bytes = 0
        self._requests = 0
        self._retries = 0

    def __call__(self, event: TransferEvent) -> None:
        """Take note of an event."""
        with self._lock:
            if isinstance(event, RequestDone):
                self._requests += 1
                self._retries += event.will_retry
            elif isinstance(event, Progressed):
                self._size_bytes += event.size_bytes
        if isinstance(event, Planned):
            self._tell("planned", what=self._what, step=self._step, size_bytes=event.size_bytes)
        elif isinstance(event, Progressed):
            self._tell("moved", what=self._what, step=self._step, size_bytes=event.size_bytes)

    def tell_done(self, **fields: object) -> None:
        """Tell the sums.

        Args:
            **fields: What else to say.
        """
        with self._lock:
            self._tell(
                f"{self._what}-done",
                step=self._step,
                size_bytes=self._size_bytes,
                duration_s=time.monotonic() - self._began_s,
                requests=self._requests,
                retries=self._retries,
                **fields,
            )
