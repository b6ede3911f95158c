"""Which requests fetch which bytes: pure planning, no I/O.

Wanted extents are sorted by object and offset, joined where the gap between them costs less than a request, and cut
into fetches of bounded length that start at multiples of that length where they can. Extents may overlap; the bytes
they share are fetched once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dcp_cloud.config import MIB
from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import StoreLimits

# Parts may be longer by this share, and objects of more parts are not worth it.
_EVENED_SHARE, _FEW_PARTS = 32, 256


@dataclass(frozen=True, slots=True)
class Extent:
    """Wanted bytes ``[start, stop)`` of an object.

    Args:
        key: Key of the object.
        start: Offset of the first byte.
        stop: Offset after the last byte, above ``start``.
    """

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Slice:
    """The stretch of an extent that one fetch brings.

    Args:
        index: Position of the extent in the sequence that was planned.
        start: Offset in the object of the first byte.
        stop: Offset in the object after the last byte.
    """

    index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """One ranged request.

    Args:
        key: Key of the object.
        start: Offset of the first byte.
        stop: Offset after the last byte.
        slices: What it brings, by ascending start; they may overlap, and gaps between them are unwanted bytes.
    """

    key: str
    start: int
    stop: int
    slices: tuple[Slice, ...]


def plan_fetches(extents: Sequence[Extent], *, max_gap_bytes: int, max_fetch_bytes: int) -> tuple[Fetch, ...]:
    """Plan the requests that bring all extents.

    Args:
        extents: What is wanted, in any order; none of them empty.
        max_gap_bytes: Largest stretch of unwanted bytes to carry along, at least 0.
        max_fetch_bytes: Longest request, at least 1.

    Returns:
        Fetches by ascending key and offset, each at most ``max_fetch_bytes`` long, together covering every wanted
        byte exactly once.
    """
    order = sorted(range(len(extents)), key=lambda i: (extents[i].key, extents[i].start, extents[i].stop))
    fetches: list[Fetch] = []
    for run in _runs(order, extents, max_gap_bytes):
        fetches.extend(_cut(run, extents, max_fetch_bytes))
    return tuple(fetches)


def _runs(order: Iterable[int], extents: Sequence[Extent], max_gap_bytes: int) -> Iterator[list[int]]:
    """Group extents of one object whose gaps are worth carrying."""
    run: list[int] = []
    stop = 0
    for index in order:
        extent = extents[index]
        if run and (extent.key != extents[run[0]].key or extent.start - stop > max_gap_bytes):
            yield run
            run = []
        stop = max(stop, extent.stop) if run else extent.stop
        run.append(index)
    if run:
        yield run


def _cut(run: Sequence[int], extents: Sequence[Extent], max_fetch_bytes: int) -> Iterator[Fetch]:
    """Cut a run at multiples of the fetch length, leaving out what nobody wants at either end of a fetch."""
    key = extents[run[0]].key
    open_indices: list[int] = []
    position = 0
    cursor = extents[run[0]].start
    while open_indices or position < len(run):
        if not open_indices:
            cursor = max(cursor, extents[run[position]].start)
        boundary = (cursor // max_fetch_bytes + 1) * max_fetch_bytes
        while position < len(run) and extents[run[position]].start < boundary:
            open_indices.append(run[position])
            position += 1
        slices = tuple(
            Slice(index, max(extents[index].start, cursor), min(extents[index].stop, boundary))
            for index in open_indices
        )
        start = min(piece.start for piece in slices)
        stop = max(piece.stop for piece in slices)
        yield Fetch(key, start, stop, slices)
        open_indices = [index for index in open_indices if extents[index].stop > boundary]
        cursor = boundary


def upload_part_bytes(expected_bytes: int, *, part_size_bytes: int, limits: StoreLimits) -> int:
    """Choose the length of an object's parts.

    Args:
        expected_bytes: Length of the object, or an upper bound of it.
        part_size_bytes: Wished length.
        limits: The provider's limits.

    Returns:
        The wished length, between the provider's bounds and long enough that ``limits.max_parts`` suffice; longer by
        up to a thirty-second if that spares the object a short last part.

    Raises:
        ConfigError: No part length fits an object of this size.
    """
    needed = -(-expected_bytes // limits.max_parts)
    if max(needed, limits.min_part_bytes) > limits.max_part_bytes:
        raise ConfigError(
            f"an object of {expected_bytes} bytes does not fit into {limits.max_parts} parts",
            hint="shard the state dict over more ranks",
        )
    wished = max(part_size_bytes, limits.min_part_bytes)
    # A whole number of MiB: readers that align their ranges to parts then meet round offsets.
    length = min(wished if needed <= wished else -(-needed // MIB) * MIB, limits.max_part_bytes)
    # A gibibyte of tensors and their headers would be 64 parts and one of some kilobytes, which takes a request, and
    # for 32 connections a whole round trip, of its own.
    whole_parts, rest_bytes = divmod(expected_bytes, length)
    if 0 < whole_parts <= _FEW_PARTS and 0 < rest_bytes <= whole_parts * length // _EVENED_SHARE:
        return min(-(-expected_bytes // whole_parts), limits.max_part_bytes)
    return length
