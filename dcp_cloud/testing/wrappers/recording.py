"""A store that remembers what was asked of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dcp_cloud.stores.base import ObjectData, ObjectStore
from dcp_cloud.testing.wrappers.base import Request, StoreWrapper

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that ended.

    Args:
        verb: Method of the store or of the upload.
        key: Key it concerned, the first one of a ``delete``, the prefix of a listing.
        start: Offset of a ``get_range``.
        index: Index of a ``put_part``.
        size_bytes: Bytes sent, or received; as many as were asked for when it failed.
        thread: Name of the thread that made it.
        error: Type name of the error, or None.
    """

    verb: str
    key: str
    start: int
    index: int
    size_bytes: int
    thread: str
    error: str | None


class RecordingStore(StoreWrapper):
    """Remembers every request, from any thread, in the order in which they ended. A pickled copy begins with none.

    Args:
        store: The wrapped store.
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._calls: list[Call] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RecordingStore], tuple[ObjectStore]]:
        return type(self), (self.store,)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The requests so far."""
        with self._lock:
            return tuple(self._calls)

    def count(self, verb: str) -> int:
        """Count the requests of a verb.

        Args:
            verb: The verb.

        Returns:
            How many there were, failed ones included.
        """
        return sum(call.verb == verb for call in self.calls)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._calls.clear()

    def around(self, request: Request, run: Callable[[], ResultT]) -> ResultT:
        """Make one request and remember it."""
        try:
            result = run()
        except BaseException as error:
            self._remember(request, request.size_bytes, type(error).__name__)
            raise
        self._remember(request, len(result.data) if isinstance(result, ObjectData) else request.size_bytes, None)
        return result

    def _remember(self, request: Request, size_bytes: int, error: str | None) -> None:
        call = Call(
            verb=request.verb,
            key=request.key,
            start=request.start,
            index=request.index,
            size_bytes=size_bytes,
            thread=threading.current_thread().name,
            error=error,
        )
        with self._lock:
            self._calls.append(call)
