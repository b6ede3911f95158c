"""What the server holds: bodies in one piece of memory, objects made of them, counters."""

from __future__ import annotations

import bisect
import itertools
import mmap
import os
import resource
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the arena.

    Args:
        start: Offset of the first byte that counts.
        nbytes: How many count.
        room: What has been taken of the arena for it: offset and length.
    """

    start: int
    nbytes: int
    room: tuple[int, int]

    def part(self, offset: int, nbytes: int) -> Segment:
        """Let only some of the bytes count."""
        return replace(self, start=self.start + offset, nbytes=nbytes)


class Arena:
    """Room for bodies: a file in memory whose pages are all there from the beginning."""

    def __init__(self, nbytes: int) -> None:
        self.fd = os.memfd_create("sink")
        os.ftruncate(self.fd, nbytes)
        self._map = mmap.mmap(self.fd, nbytes)
        for start in range(0, nbytes, PAGE_BYTES):
            self._map[start] = 0
        self._view = memoryview(self._map)
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(0, nbytes)]  # (start, length), by start

    def take(self, nbytes: int) -> Segment:
        length = max(1, -(-nbytes // PAGE_BYTES)) * PAGE_BYTES
        with self._lock:
            for i, (start, room) in enumerate(self._free):
                if room >= length:
                    self._free[i : i + 1] = [(start + length, room - length)] if room > length else []
                    return Segment(start, nbytes, (start, length))
        raise MemoryError("the sink is full: start it with more --gib")

    def give(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self._give(*segment.room)

    def view(self, segment: Segment) -> memoryview:
        return self._view[segment.start : segment.start + segment.nbytes]

    def _give(self, start: int, length: int) -> None:
        with self._lock:
            i = bisect.bisect(self._free, (start, 0))
            if i < len(self._free) and self._free[i][0] == start + length:
                length += self._free.pop(i)[1]
            if i and sum(self._free[i - 1]) == start:
                before = self._free.pop(i - 1)
                start, length = before[0], before[1] + length
                i -= 1
            self._free.insert(i, (start, length))


@dataclass(slots=True)
class Blob:
    """A stored object."""

    number: int  # differs for every object ever stored: ETag and generation are made of it
    segments: list[Segment]
    starts: list[int] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.starts = [0, *itertools.accumulate(segment.nbytes for segment in self.segments)]
        self.nbytes = self.starts.pop()

    @property
    def etag(self) -> str:
        return f"{self.number:032x}"

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Say where the bytes of a range lie in the arena: offsets and lengths."""
        i = bisect.bisect_right(self.starts, start) - 1
        while start < stop:
            segment = self.segments[i]
            inner = start - self.starts[i]
            count = min(segment.nbytes - inner, stop - start)
            yield segment.start + inner, count
            start += count
            i += 1


class Sink:
    """All that is stored, and the counters."""

    def __init__(self, nbytes: int) -> None:
        self.arena = Arena(nbytes)
        self.lock = threading.Lock()
        self.blobs: dict[str, Blob] = {}
        # Upload id (Azure: key) to key and parts.
        self.uploads: dict[str, tuple[str, dict[str, Segment]]] = {}
        self.ids = itertools.count(1)
        self.requests: Counter[str] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.connections = 0
        self.first_byte_s = 0.0
        self.bytes_per_s = 0.0

    def count(self, verb: str, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        with self.lock:
            self.requests[verb] += 1
            self.bytes_in += bytes_in
            self.bytes_out += bytes_out

    def store(self, key: str, segments: list[Segment]) -> Blob:
        with self.lock:
            blob = Blob(next(self.ids), segments)
            old, self.blobs[key] = self.blobs.get(key), blob
        self.arena.give(old.segments if old else ())
        return blob

    def remove(self, key: str) -> bool:
        with self.lock:
            old = self.blobs.pop(key, None)
        self.arena.give(old.segments if old else ())
        return old is not None

    def copy(self, source: Blob, key: str) -> Blob:
        segment = self.arena.take(source.nbytes)
        target, filled = self.arena.view(segment), 0
        for start, nbytes in source.pieces(0, source.nbytes):
            target[filled : filled + nbytes] = self.arena.view(Segment(start, nbytes, (0, 0)))
            filled += nbytes
        return self.store(key, [segment])

    def below(self, start: str, delimiter: str) -> tuple[list[tuple[str, Blob]], list[str]]:
        """List the objects whose keys begin with a text, and what is folded by the delimiter; keys without ``start``'s
        bucket (what comes before the first slash; on Azure the first two)."""
        found, prefixes = [], {}
        for key, blob in sorted(self.blobs.items()):
            if not key.startswith(start):
                continue
            rest = key[len(start) :]
            if delimiter and delimiter in rest:
                prefixes[start + rest.split(delimiter)[0] + delimiter] = None
            else:
                found.append((key, blob))
        return found, list(prefixes)

    def clear(self) -> None:
        for key in list(self.blobs):
            self.remove(key)
        for name in list(self.uploads):
            self.arena.give(self.uploads.pop(name)[1].values())

    def stats(self) -> dict[str, object]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "requests": dict(self.requests),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "connections": self.connections,
        }
