"""Whether the archive of a stored item is intact, by the checksums that every zip holds.

An archive may be too long to hold: then its first and last bytes are given, which hold all its small records, and of
what lies between only checksums. Nothing is unpickled.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dcp_cloud.crc32 import combine_crc32
from dcp_cloud.format import ziplayout
from dcp_cloud.format.ziplayout import Entry

Bytes: TypeAlias = bytes | memoryview

_END_BYTES = ziplayout.END64.size + ziplayout.LOCATOR.size + ziplayout.END.size


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of which only the checksum is known.

    Args:
        nbytes: Their number.
        crc32: Their CRC-32 (zlib).
    """

    nbytes: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the checksums of an archive say.

    Args:
        status: ``unknown`` if it is no archive of stored records, or holds no checksums.
        cause: What is damaged.
    """

    status: Literal["intact", "damaged", "unknown"]
    cause: str = ""


_INTACT = Finding(status="intact")
_UNKNOWN = Finding(status="unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartlyHeld:
    """An item of which the beginning and the end are in memory.

    Args:
        head: Its first bytes.
        middle: What follows them, run by run.
        tail: Its last bytes; empty if the head is the whole item.
    """

    head: Bytes
    middle: Sequence[Run] = ()
    tail: Bytes = b""

    @property
    def tail_start(self) -> int:
        """Offset of the tail in the item."""
        return len(self.head) + sum(run.nbytes for run in self.middle)

    def held(self, start: int, nbytes: int) -> bytes | None:
        """Give bytes of the item, or None if they are not in memory."""
        if start + nbytes <= len(self.head):
            return bytes(self.head[start : start + nbytes])
        start -= self.tail_start
        if start >= 0 and start + nbytes <= len(self.tail):
            return bytes(self.tail[start : start + nbytes])
        return None

    def crc32(self, start: int, stop: int) -> int | None:
        """Give the CRC-32 of bytes of the item, or None if it does not follow from what is known."""
        head_stop, tail_start = len(self.head), self.tail_start
        if stop <= head_stop:
            return zlib.crc32(self.head[start:stop])
        if start >= tail_start:
            return zlib.crc32(self.tail[start - tail_start : stop - tail_start])
        if start > head_stop or stop < tail_start:
            return None
        crc = zlib.crc32(self.head[start:])
        for run in self.middle:
            crc = combine_crc32(crc, run.crc32, run.nbytes)
        return zlib.crc32(self.tail[: stop - tail_start], crc)


def check_archive(item: PartlyHeld) -> Finding:
    """Compare all records of an archive with their checksums.

    Args:
        item: The item.

    Returns:
        ``intact`` if every record has the checksum that the archive's directory says.
    """
    last = item.tail or item.head
    looks_like_archive = (
        bytes(item.head[:4]) == ziplayout.LOCAL_SIGNATURE
        or bytes(last[-ziplayout.END.size :][:4]) == ziplayout.END_SIGNATURE
    )
    if not looks_like_archive:
        return _UNKNOWN
    entries = _directory(last)
    if entries is None:
        return Finding(status="damaged", cause="the archive's directory cannot be read")
    if not any(entry.crc32 for entry in entries):
        return _UNKNOWN  # torch can be told to compute none
    findings = [_check_record(item, entry) for entry in entries]
    damaged = [finding for finding in findings if finding.status == "damaged"]
    unknown = [finding for finding in findings if finding.status == "unknown"]
    return next(iter(damaged + unknown), _INTACT)


def _directory(last: Bytes) -> list[Entry] | None:
    if len(last) < _END_BYTES:
        return None
    end = ziplayout.END.unpack_from(last, len(last) - ziplayout.END.size)
    stop = len(last) - _END_BYTES
    start = stop - end[5]
    if end[0] != ziplayout.END_SIGNATURE or start < 0:
        return None
    try:
        entries = list(ziplayout.read_directory(bytes(last[start:stop])))
    except ValueError:
        return None
    return entries if entries and len(entries) == end[4] else None


def _check_record(item: PartlyHeld, entry: Entry) -> Finding:
    name = entry.name.decode("utf-8", "replace")
    header = item.held(entry.header_offset, ziplayout.LOCAL_HEADER.size)
    if header is None:
        return _UNKNOWN
    signature, *_, name_bytes, extra_bytes = ziplayout.LOCAL_HEADER.unpack(header)
    name_start = entry.header_offset + ziplayout.LOCAL_HEADER.size
    if signature != ziplayout.LOCAL_SIGNATURE or item.held(name_start, name_bytes) != entry.name:
        return Finding(status="damaged", cause=f"the header of its record {name!r} is damaged")
    start = name_start + name_bytes + extra_bytes
    crc = item.crc32(start, start + entry.size_bytes)
    if crc is None:
        return _UNKNOWN
    if crc != entry.crc32:
        return Finding(
            status="damaged", cause=f"CRC-32 of its record {name!r} is {crc:08x}, the archive says {entry.crc32:08x}"
        )
    return _INTACT
