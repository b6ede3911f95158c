"""Stretches of bytes to upload that know their checksum.

A span's CRC-32 is computed once, by whichever thread needs it first, and combined from there on: two halves give the
whole, blocks give the tensor, spans give the part. A late span's bytes are made when they are first asked for; the
trailer of a torch record is one, because it holds the checksum of the bytes before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from dcp_cloud.crc32 import combine_crc32, crc32


class Room:
    """Memory that late bytes will take, granted before they are made and given back when all of them are sent.

    Shared by the spans that the bytes are cut into: a block is made whole even if two parts have a half of it each.

    Args:
        nbytes: How much.
    """

    __slots__ = ("_left_bytes", "_lock", "is_granted", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.is_granted = False
        self._left_bytes = nbytes
        self._lock = threading.Lock()

    def sent(self, nbytes: int) -> bool:
        """Take note of sent bytes.

        Args:
            nbytes: How many.

        Returns:
            Whether all are sent now.
        """
        with self._lock:
            self._left_bytes -= nbytes
            return self._left_bytes == 0


class Span:
    """Bytes of known length and lazily known content.

    Args:
        nbytes: Length.
        load: Gives the bytes: a one-dimensional memoryview of format ``B`` and length ``nbytes``. The memory must stay
            unchanged until the bytes are sent; then it is let go.
        on_sent: Called once when the store has the bytes, with their number.
        room: Memory that ``load`` will take; None if it takes none, or has been granted it.
        page_bytes: Keep the checksums of pages of this length, too; 0 for none.
    """

    __slots__ = ("_crc32", "_halves", "_load", "_lock", "_page_bytes", "_pieces", "_start", "nbytes", "on_sent", "room")

    def __init__(
        self,
        nbytes: int,
        load: Callable[[], memoryview],
        *,
        on_sent: Callable[[int], None] | None = None,
        room: Room | None = None,
        page_bytes: int = 0,
    ) -> None:
        self.nbytes = nbytes
        self._page_bytes = page_bytes
        self._pieces: tuple[tuple[int, int], ...] = ()
        self.on_sent = on_sent
        self.room = room
        self._load: Callable[[], memoryview] | None = load
        self._start = 0
        self._lock = threading.Lock()
        self._crc32: int | None = None
        self._halves: tuple[Span, Span] | None = None

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, *, on_sent: Callable[[int], None] | None = None) -> Span:
        """Make a span of bytes that are there already.

        Args:
            data: The bytes; a memoryview must be C-contiguous.
            on_sent: As in the constructor.

        Returns:
            The span; no copy is made.
        """
        view = memoryview(data).cast("B")
        return cls(view.nbytes, lambda: view, on_sent=on_sent)

    def view(self) -> memoryview:
        """Give the bytes. A span that was split or forgotten has none."""
        assert self._load is not None  # noqa: S101 - parts hold only spans that are neither
        view = self._load()[self._start : self._start + self.nbytes]
        assert view.nbytes == self.nbytes  # noqa: S101 - a shorter one would shift all that follows in the object
        return view

    def crc32(self) -> int:
        """Give the CRC-32 (zlib) of the bytes, computing it the first time."""
        with self._lock:
            if self._crc32 is None:
                self._crc32 = self._computed() if self._halves is None else crc32_of(self._leaves())
            return self._crc32

    def page_crc32s(self) -> tuple[int, ...]:
        """Give the CRC-32 of each page, the last one shorter."""
        self.crc32()
        pages: list[int] = []
        position = 0
        for leaf in self._leaves():
            leaf.crc32()
            for nbytes, crc in leaf._pieces:  # a split may have cut a page in two
                if position % self._page_bytes:
                    pages[-1] = combine_crc32(pages[-1], crc, nbytes)
                else:
                    pages.append(crc)
                position += nbytes
        return tuple(pages)

    def forget(self) -> None:
        """Let go of the bytes, keeping their checksum; they have been sent."""
        self.crc32()
        self._load = None

    def split(self, nbytes: int) -> tuple[Span, Span]:
        """Cut the span in two; its own checksum is combined from theirs from now on.

        Args:
            nbytes: Length of the first half, above 0 and below the span's length.

        Returns:
            The halves, which hold the bytes from now on.
        """
        load = self._load
        assert load is not None  # noqa: S101 - a span is split before it is sent
        halves = (
            Span(nbytes, load, on_sent=self.on_sent, room=self.room, page_bytes=self._page_bytes),
            Span(self.nbytes - nbytes, load, on_sent=self.on_sent, room=self.room, page_bytes=self._page_bytes),
        )
        halves[0]._start, halves[1]._start = self._start, self._start + nbytes
        with self._lock:
            self._halves = halves
            self._load = None
        return halves

    def _computed(self) -> int:
        view = self.view()
        if not self._page_bytes:
            return crc32(view)
        pieces = []
        whole = start = 0
        while start < self.nbytes:
            stop = min(start + self._page_bytes - (self._start + start) % self._page_bytes, self.nbytes)
            crc = crc32(view[start:stop])
            whole = combine_crc32(whole, crc, stop - start)
            pieces.append((stop - start, crc))
            start = stop
        self._pieces = tuple(pieces)
        return whole

    def _leaves(self) -> Iterator[Span]:
        """Give the pieces that hold the bytes; a long span is halved thousands of times, too deep for recursion."""
        pending: list[Span] = [self]
        while pending:
            span = pending.pop()
            if span._halves is None:
                yield span
            else:
                pending.extend(reversed(span._halves))


def crc32_of(spans: Iterable[Span]) -> int:
    """Give the CRC-32 of spans that follow one another, computing none of them twice if it is long.

    Args:
        spans: The spans in order.

    Returns:
        The CRC-32 (zlib) of all their bytes.
    """
    crc = 0
    for span in spans:
        crc = combine_crc32(crc, span.crc32(), span.nbytes)
    return crc
