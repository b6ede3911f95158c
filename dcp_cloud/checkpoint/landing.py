"""From "this box of that stored tensor into this target" to bytes and the memory where they land.

A box of a row-major tensor is a number of runs of consecutive bytes. Where the target's memory has the same bytes in
the same order, the runs land in it directly; everything else (another dtype, another layout, an accelerator, runs too
short to be worth a buffer each) is read into temporaries of bounded size and copied by torch. A transposed or
channels-last tensor is a row-major one with its dimensions in another order, on both sides; so is a view with gaps
between its elements or with elements that overlap, but for its strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.format.archive import is_row_major
from dcp_cloud.format.layout import PAGE_BYTES
from dcp_cloud.format.tensors import tensor_bytes
from dcp_cloud.transfer.download import Check, Target

# Runs shorter than this cost more as buffers of their own than as a copy by torch.
_MIN_RUN_BYTES = 4096
# Shorter runs are read together: each by itself would read the pages at its ends once more.
_MIN_RUN_PAGES = 4
# Each run is a target of its own, of about 0.9 kB (measured): so many take less than 32 MiB.
_MAX_RUNS = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """The bare bytes of a stored tensor.

    Args:
        key: Key of the object.
        start: Offset of the first byte in the object.
        nbytes: Length.
        shape: Shape of the stored tensor (one chunk of the global one).
        strides: Strides in elements, or None for row-major.
        dtype: Element type of the stored bytes.
        crc32: CRC-32 of all bytes, or None if unknown.
        page_crc32: CRC-32 of each page; empty if there is only one page or none is known.
        label: The tensor's name, for messages.
        page_bytes: Length of a page.
    """

    key: str
    start: int
    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: torch.dtype
    crc32: int | None
    page_crc32: tuple[int, ...]
    label: str
    page_bytes: int = PAGE_BYTES

    @property
    def unit_bytes(self) -> int:
        """Length of what can be verified by itself: a page, or the whole; 1 if nothing is known."""
        if self.page_crc32:
            return self.page_bytes
        return 1 if self.crc32 is None else max(self.nbytes, 1)

    def widened(self, start: int, stop: int) -> tuple[int, int]:
        """Give the least stretch around bytes ``[start, stop)`` that can be verified to the last byte."""
        unit = self.unit_bytes
        return start // unit * unit, min(-(-stop // unit) * unit, self.nbytes)

    def checks(self, start: int, stop: int) -> tuple[Check, ...]:
        """Give the checksums that bytes ``[start, stop)`` of the tensor can be verified by.

        Args:
            start: Offset from the first byte of the tensor.
            stop: Offset after the last byte.

        Returns:
            One check for each page that lies wholly within, relative to ``start``; one for all if that is the tensor.
        """
        if start == 0 and stop == self.nbytes and self.crc32 is not None:
            return (Check(0, stop, self.crc32),)
        if not self.page_crc32:
            return ()
        unit = self.page_bytes
        first, last = -(-start // unit), len(self.page_crc32) if stop == self.nbytes else stop // unit
        return tuple(
            Check(index * unit - start, min((index + 1) * unit, self.nbytes) - start, self.page_crc32[index])
            for index in range(first, last)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LandingConfig:
    """Sizes that decide how boxes are cut.

    Args:
        tile_bytes: Longest target but for the rest of its pages; a multiple of their length.
        max_gap_bytes: Longest stretch of unwanted bytes worth reading along.
        load_bytes: Length of all that the load fills; the longer it is, the longer runs have to be to be targets.
    """

    tile_bytes: int
    max_gap_bytes: int
    load_bytes: int = 0


def plan_landing(
    stored: StoredTensor,
    offsets: Sequence[int],
    target: torch.Tensor,
    config: LandingConfig,
) -> list[Target]:
    """Plan the reads that fill a target tensor with a box of a stored one.

    Args:
        stored: The stored tensor.
        offsets: Where the box begins in it, elements; the target's shape is the box's size.
        target: Any shape, dtype, layout, device; at least one element.
        config: Sizes.

    Returns:
        Targets that together fill it.

    Raises:
        CorruptCheckpointError: The record of the stored tensor contradicts itself.
    """
    _check_bounds(stored, offsets, target)
    if stored.strides is not None:
        order = sorted(range(len(stored.shape)), key=stored.strides.__getitem__, reverse=True)
        shape, strides = _pick(stored.shape, order), _pick(stored.strides, order)
        stored = replace(stored, shape=shape, strides=None if is_row_major(shape, strides) else strides)
        offsets, target = _pick(offsets, order), target.permute(order)
    if stored.strides is None and _lands_directly(stored, target):
        runs = _runs(stored.shape, offsets, target.shape, stored.dtype.itemsize)
        least = max(_MIN_RUN_BYTES, config.load_bytes // _MAX_RUNS, _MIN_RUN_PAGES * stored.unit_bytes)
        if runs.nbytes >= min(least, target.nbytes):
            return list(_direct(stored, runs, tensor_bytes(target), config))
    return list(_converted(stored, tuple(offsets), target, config))


def extent_bytes(tensor: torch.Tensor) -> int:
    """Measure the stretch of memory from the first to the last element of a tensor.

    Args:
        tensor: A tensor of any strides.

    Returns:
        Its length, bytes.
    """
    return _span(tensor.shape, tensor.stride()) * tensor.itemsize if tensor.numel() else 0


def _pick(values: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[index] for index in order)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Stretches of consecutive bytes of a box: all of the same length, by ascending offset."""

    starts: Iterator[int]
    nbytes: int


def _runs(shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], itemsize: int) -> _Runs:
    strides = _row_major(shape)
    inner = len(shape)
    while inner > 0 and lengths[inner - 1] == shape[inner - 1]:
        inner -= 1
    outer = max(inner - 1, 0)
    run_elements = math.prod(lengths[outer:])
    base = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))

    def starts(dim: int, position: int) -> Iterator[int]:
        if dim == outer:
            yield position * itemsize
            return
        for index in range(lengths[dim]):
            yield from starts(dim + 1, position + index * strides[dim])

    return _Runs(starts(0, base), run_elements * itemsize)


def _direct(stored: StoredTensor, runs: _Runs, memory: memoryview, config: LandingConfig) -> Iterator[Target]:
    position = 0
    for run_start in runs.starts:
        run_stop = run_start + runs.nbytes
        start = run_start
        while start < run_stop:
            # Cut at multiples of the tile from the tensor's first byte, where pages begin, and where whole pages end.
            stop = min((start // config.tile_bytes + 1) * config.tile_bytes, run_stop)
            low, high = stored.widened(start, stop)
            if low < start:
                stop = min(low + stored.unit_bytes, stop)
            elif high > stop > (whole := high - stored.unit_bytes) > start:
                stop = whole
            yield _piece(stored, start, stop, memory[position : position + stop - start])
            position += stop - start
            start = stop


def _piece(stored: StoredTensor, start: int, stop: int, memory: memoryview) -> Target:
    """Read bytes to where they belong, or, where they end within a page, take them from a temporary that holds it."""
    low, high = stored.widened(start, stop)
    is_exact = (low, high) == (start, stop)

    def cut(page: memoryview) -> None:
        memory[:] = page[start - low : stop - low]

    return Target(
        key=stored.key,
        start=stored.start + low,
        nbytes=high - low,
        memory=memory if is_exact else None,
        checks=stored.checks(low, high),
        convert=None if is_exact else cut,
        label=stored.label,
    )


def _converted(
    stored: StoredTensor, offsets: tuple[int, ...], target: torch.Tensor, config: LandingConfig
) -> Iterator[Target]:
    strides = stored.strides or _row_major(stored.shape)
    itemsize = stored.dtype.itemsize
    for tile_offsets, tile in _tiles(stored, offsets, target, config):
        first = sum(offset * stride for offset, stride in zip(tile_offsets, strides, strict=True))
        start, stop = first * itemsize, (first + _span(tile.shape, strides)) * itemsize
        # Read whole pages, so that all of them can be verified; what two tiles share is fetched once.
        start, stop = stored.widened(start, stop)
        yield Target(
            key=stored.key,
            start=stored.start + start,
            nbytes=stop - start,
            checks=stored.checks(start, stop),
            convert=_copier(tile, stored.dtype, strides, first - start // itemsize),
            label=stored.label,
        )


def _tiles(
    stored: StoredTensor, offsets: tuple[int, ...], target: torch.Tensor, config: LandingConfig
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Halve a box along its outermost divisible dimension until its bytes are worth one temporary."""
    strides = stored.strides or _row_major(stored.shape)
    itemsize = stored.dtype.itemsize
    is_long = _span(target.shape, strides) * itemsize > config.tile_bytes
    # Gaps within a page are read anyway.
    is_sparse = _largest_gap(target.shape, strides) * itemsize > max(config.max_gap_bytes, stored.unit_bytes)
    if not (is_long or is_sparse):
        yield offsets, target
        return
    dim = next(index for index, length in enumerate(target.shape) if length > 1)
    half = target.shape[dim] // 2
    rest = (*offsets[:dim], offsets[dim] + half, *offsets[dim + 1 :])
    yield from _tiles(stored, offsets, target.narrow(dim, 0, half), config)
    yield from _tiles(stored, rest, target.narrow(dim, half, target.shape[dim] - half), config)


def _span(lengths: Sequence[int], strides: Sequence[int]) -> int:
    """Count the elements from the first to the last of a box."""
    return 1 + sum((length - 1) * stride for length, stride in zip(lengths, strides, strict=True))


def _copier(
    target: torch.Tensor, dtype: torch.dtype, strides: Sequence[int], base: int
) -> Callable[[memoryview], None]:
    def copy(memory: memoryview) -> None:
        flat = torch.frombuffer(memory, dtype=torch.uint8).view(dtype)
        with filling(target):
            target.copy_(torch.as_strided(flat, tuple(target.shape), tuple(strides), base))

    return copy


def filling(target: torch.Tensor) -> AbstractContextManager[None]:
    """Let this thread write to a target: what the caller's thread may do is not known to torch on another one.

    Args:
        target: The tensor to be written to.

    Returns:
        A context to write in.
    """
    return torch.inference_mode() if target.is_inference() else torch.no_grad()


def _lands_directly(stored: StoredTensor, target: torch.Tensor) -> bool:
    return _is_plain_memory(stored, target) and target.is_contiguous()


def _is_plain_memory(stored: StoredTensor, target: torch.Tensor) -> bool:
    return (
        target.device.type == "cpu"
        and target.dtype == stored.dtype
        and type(target) is torch.Tensor
        and target.layout == torch.strided
        and not target.is_conj()
        and not target.is_neg()
    )


def _check_bounds(stored: StoredTensor, offsets: Sequence[int], target: torch.Tensor) -> None:
    """Trust no record: a box must lie within the tensor, and the tensor within its bytes."""
    inside = len(offsets) == len(stored.shape) == target.dim() and all(
        offset >= 0 and offset + length <= size
        for offset, length, size in zip(offsets, target.shape, stored.shape, strict=False)
    )
    strides = stored.strides if stored.strides is not None else _row_major(stored.shape)
    fits = len(strides) == len(stored.shape) and stored.nbytes % stored.dtype.itemsize == 0
    if fits and 0 not in stored.shape:
        last = sum((size - 1) * stride for size, stride in zip(stored.shape, strides, strict=True))
        fits = (last + 1) * stored.dtype.itemsize <= stored.nbytes
    if not inside or not fits:
        raise CorruptCheckpointError(
            f"the record of {stored.label} does not fit its bytes",
            key=stored.key,
            cause=f"box at {list(offsets)} of size {list(target.shape)} in shape {list(stored.shape)}, "
            f"strides {list(strides)}, {stored.nbytes} bytes",
            hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
        )


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
    return tuple(strides)


def _largest_gap(lengths: Sequence[int], strides: Sequence[int]) -> int:
    """Give the longest stretch of unwanted elements between wanted ones of a box."""
    gap, inner = 0, 1
    for length, stride in zip(reversed(lengths), reversed(strides), strict=True):
        if length > 1:
            gap = max(gap, stride - inner)
        inner = (length - 1) * stride + inner
    return gap
