"""Bytes on their way from one store to another: parts that are read when they are about to be sent."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.span import Room, Span


class _Piece:
    """One part of an object, read once, by whichever thread needs it first."""

    def __init__(self, store: RetryingStore, meta: ObjectMeta, start: int, nbytes: int) -> None:
        self._store = store
        self._meta = meta
        self._start = start
        self._nbytes = nbytes
        self._lock = threading.Lock()
        self._memory: memoryview | None = None

    def view(self, start: int, stop: int) -> memoryview:
        """Give bytes of the piece."""
        with self._lock:
            if self._memory is None:
                memory = memoryview(bytearray(self._nbytes))
                self._store.get_range(self._meta.key, self._start, [memory], if_match=self._meta.etag)
                self._memory = memory
        return self._memory[start:stop]


def relay_spans(store: RetryingStore, meta: ObjectMeta, *, part_bytes: int, cuts: Iterable[int]) -> Iterator[Span]:
    """Cut an object into spans to upload elsewhere. Nothing is read before a span is about to be sent.

    Each span lies within one part, so each part is one ranged read, and between two cuts, so that the checksum of
    whatever lies between any two cuts is combined from those of whole spans.

    Args:
        store: Where the object is.
        meta: The object; if it is replaced meanwhile, reading fails.
        part_bytes: Length of the parts in which it will be uploaded.
        cuts: Offsets in the object.

    Yields:
        The spans in order; their lengths sum up to the object's.
    """
    size_bytes = meta.size_bytes
    inner = sorted({cut for cut in cuts if 0 < cut < size_bytes})
    position = 0
    for start in range(0, size_bytes, part_bytes):
        stop = min(start + part_bytes, size_bytes)
        piece, room = _Piece(store, meta, start, stop - start), Room(stop - start)
        first = start
        while first < stop:
            while position < len(inner) and inner[position] <= first:
                position += 1
            last = min(stop, inner[position]) if position < len(inner) else stop
            yield _span(piece, first - start, last - start, room)
            first = last


def _span(piece: _Piece, start: int, stop: int, room: Room) -> Span:
    return Span(stop - start, lambda: piece.view(start, stop), room=room)
