"""Reading the head and the tail of a stored tensor item without loading it.

Knowing where the bare bytes lie, a reader fetches just the slice it needs, straight into the target's memory. The
parser takes one shape of archive, the one that ``torch.save`` writes for a plain little-endian tensor. Everything else
yields None, and the item is loaded whole by :func:`dcp_cloud.format.items.load_item`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch

from dcp_cloud.format import ziplayout
from dcp_cloud.format.archive import is_row_major
from dcp_cloud.format.tensor_pickle import PICKLE_LIMIT_BYTES, match_tensor_pickle

TAIL_BYTES = 1024
"""Bytes at the end of an item that hold all of its central directory."""

_PICKLE = b"archive/data.pkl"
_DATA = b"archive/data/0"
_BYTEORDER = b"archive/byteorder"
# Between the pickle and the data; torch 2.6 writes the last one only.
_BETWEEN = frozenset({b"archive/.format_version", b"archive/.storage_alignment", _BYTEORDER})
_CONTENT_LIMIT_BYTES = 32
# Five records stand before the data; torch's padding field cannot hold more than 64 KiB for each.
_HEAD_LIMIT_BYTES = 6 * 64 * 1024
_KNOWN_FLAGS = 0x0808


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLayout:
    """What the head of an item says of its tensor.

    Args:
        dtype: The tensor's dtype.
        shape: Its sizes.
        strides: Its strides, in elements.
        storage_offset: Element of the storage at which it starts.
        conj: Whether its conjugate bit is set.
        neg: Whether its negative bit is set.
        raw_offset: Where the raw bytes of the storage start, from the start of the item.
        raw_nbytes: How many they are.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int
    conj: bool
    neg: bool
    raw_offset: int
    raw_nbytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the raw bytes are just the tensor's values, in row-major order."""
        return (
            not (self.conj or self.neg or (self.storage_offset and self.raw_nbytes))
            and self.raw_nbytes == math.prod(self.shape) * self.dtype.itemsize
            and is_row_major(self.shape, self.strides)
        )

    def tensor_over(self, raw: torch.Tensor) -> torch.Tensor:
        """Make the tensor from its raw bytes.

        Args:
            raw: The raw bytes, as a uint8 tensor that fills its storage; its memory becomes the tensor's.

        Returns:
            The tensor that ``torch.load`` would give.
        """
        tensor = torch.empty(0, dtype=torch.uint8, device="cpu").view(self.dtype)
        tensor.set_(raw.untyped_storage(), self.storage_offset, self.shape, self.strides)
        tensor = tensor.conj() if self.conj else tensor
        return torch._neg_view(tensor) if self.neg else tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedMore:
    """The head is longer than what was given.

    Args:
        nbytes: Length of the prefix to come back with, more than before and never beyond the item.
    """

    nbytes: int


class _NotPlain(Exception):  # noqa: N818 - steers the parser and never leaves it
    """The item is not the one shape that is read here."""


class _TooShort(Exception):  # noqa: N818 - the same
    """The prefix ends before the head does."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes = nbytes


def parse_header(prefix: bytes, *, item_nbytes: int) -> RawLayout | NeedMore | None:
    """Find a tensor's raw bytes from the first bytes of its item.

    Args:
        prefix: The first bytes of the item; 1 KiB is enough for most.
        item_nbytes: Length of the whole item.

    Returns:
        The layout, every number of which was checked against the others and the item's length; a request for a
        longer prefix; or None for an item that must be loaded whole.
    """
    try:
        return _parse(prefix, item_nbytes)
    except _TooShort as short:
        wanted = min(max(short.nbytes, 2 * len(prefix)), item_nbytes)
        beyond = short.nbytes > min(item_nbytes, _HEAD_LIMIT_BYTES) or wanted <= len(prefix)
        return None if beyond else NeedMore(nbytes=wanted)
    except _NotPlain:
        return None


def crc32_from_trailer(tail: bytes) -> int | None:
    """Find the checksum of a tensor's raw bytes in the last bytes of its item.

    Args:
        tail: The last bytes of the item, at least ``TAIL_BYTES`` of them or the whole item.

    Returns:
        CRC-32 (zlib) of the raw bytes, or None if the item holds none or is no archive of one tensor.
    """
    fixed = ziplayout.END64.size + ziplayout.LOCATOR.size + ziplayout.END.size
    if len(tail) < fixed:
        return None
    end = ziplayout.END.unpack_from(tail, len(tail) - ziplayout.END.size)
    start = len(tail) - fixed - end[5]
    if end[0] != ziplayout.END_SIGNATURE or start < 0:
        return None
    try:
        entries = {entry.name: entry for entry in ziplayout.read_directory(tail[start : len(tail) - fixed])}
    except ValueError:
        return None
    # A user may switch checksums off; then all are zero, that of the pickle too, which is never zero otherwise.
    if len(entries) != end[4] or _PICKLE not in entries or entries[_PICKLE].crc32 == 0 or _DATA not in entries:
        return None
    return entries[_DATA].crc32


def _parse(data: bytes, item_nbytes: int) -> RawLayout:
    name, start = _record(data, 0)
    if name != _PICKLE:
        raise _NotPlain
    found = match_tensor_pickle(data, start)
    if found is None:
        if ziplayout.DESCRIPTOR_SIGNATURE not in data[start:]:  # else the pickle is whole, but another one
            _require(data, min(start + PICKLE_LIMIT_BYTES, item_nbytes))
        raise _NotPlain
    position = _after(data, start, found.end)
    byteorder = b""
    while True:
        name, start = _record(data, position)
        if name == _DATA:
            break
        if name not in _BETWEEN:
            raise _NotPlain
        end = _content_end(data, start)
        byteorder = data[start:end] if name == _BYTEORDER else byteorder
        position = _after(data, start, end)
    if byteorder != b"little" or start + found.storage_nbytes > item_nbytes:
        raise _NotPlain
    return RawLayout(
        dtype=found.dtype,
        shape=found.shape,
        strides=found.strides,
        storage_offset=found.storage_offset,
        conj=found.conj,
        neg=found.neg,
        raw_offset=start,
        raw_nbytes=found.storage_nbytes,
    )


def _record(data: bytes, position: int) -> tuple[bytes, int]:
    """Read a local header: the record's name, and where its data start."""
    _require(data, position + ziplayout.LOCAL_HEADER.size)
    signature, _, flags, method, *_, name_bytes, extra_bytes = ziplayout.LOCAL_HEADER.unpack_from(data, position)
    if signature != ziplayout.LOCAL_SIGNATURE or flags & ~_KNOWN_FLAGS or method:
        raise _NotPlain
    start = position + ziplayout.LOCAL_HEADER.size
    _require(data, start + name_bytes)
    return data[start : start + name_bytes], start + name_bytes + extra_bytes


def _content_end(data: bytes, start: int) -> int:
    limit = start + _CONTENT_LIMIT_BYTES
    end = data.find(ziplayout.DESCRIPTOR_SIGNATURE, start, limit)
    if end < 0:
        _require(data, limit)
        raise _NotPlain
    return end


def _after(data: bytes, start: int, end: int) -> int:
    """Check a record's content against its descriptor, and give the place after both."""
    content = data[start:end]
    after = end + 16
    _require(data, after)
    crc = zlib.crc32(content) if data[end + 4 : end + 8] != bytes(4) else 0  # zero: checksums were switched off
    if data[end:after] != ziplayout.descriptor(len(content), crc, 0):
        raise _NotPlain
    return after


def _require(data: bytes, nbytes: int) -> None:
    if len(data) < nbytes:
        raise _TooShort(nbytes)
