"""Rules about keys and buffers that every store shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import ChecksumMismatchError, InvalidRequestError, OutOfRangeError
from dcp_cloud.stores.base import Buffers, Part

OWN_PREFIX = ".dcp-cloud-"
"""Names that a store keeps for itself; an unfinished upload of such a name is what a crash left of a write."""


def below(prefix: str) -> str:
    """Turn a prefix of whole segments into the text that all keys below it start with."""
    return f"{prefix}/" if prefix else ""


def next_level(keys: Iterator[str], prefix: str) -> Iterator[str]:
    """Yield each ``prefix/name`` that has keys below it, once."""
    start = below(prefix)
    seen: set[str] = set()
    for key in keys:
        name, slash, _ = key[len(start) :].partition("/")
        if slash and name not in seen:
            seen.add(name)
            yield start + name


def total_bytes(buffers: Buffers) -> int:
    """Add up the lengths of buffers."""
    return sum(map(len, buffers))


def check_crc32(data: Buffers, expected: int | None, *, key: str) -> None:
    """Compare data with its checksum.

    Raises:
        ChecksumMismatchError: They differ.
    """
    if expected is None:
        return
    crc = 0
    for buffer in data:
        crc = crc32(buffer, crc)
    if crc != expected:
        raise ChecksumMismatchError(
            "the data is not what its checksum says",
            key=key,
            cause=f"crc32 is {crc:#010x}, expected {expected:#010x}",
            hint="something changed the memory while it was being saved",
        )


def check_indices(parts: Sequence[Part], *, key: str) -> None:
    """Require receipts ``0..n-1`` in order, at least one.

    Raises:
        InvalidRequestError: They are not.
    """
    if not parts or any(part.index != place for place, part in enumerate(parts)):
        raise InvalidRequestError(
            "an upload is completed with all its parts in order",
            key=key,
            cause=f"got part indices {[part.index for part in parts][:8]}",
        )


def range_beyond_end(key: str, start: int, length: int, size_bytes: int | None) -> OutOfRangeError:
    """Make the error of a range that ends behind its object."""
    size = "unknown" if size_bytes is None else str(size_bytes)
    return OutOfRangeError(
        "the object ends before the range does",
        key=key,
        cause=f"asked for bytes {start} to {start + length}, the object's length is {size}",
    )
