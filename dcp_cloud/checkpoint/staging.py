"""Where the bytes of a tensor come from: its own memory, or copies made block by block when a part is about to leave.

A tensor on an accelerator, or one whose elements are scattered, has no run of host memory to send. Its blocks are
copied by the thread that sends them and let go when they are sent, so that copies overlap uploads. A part is handed
out only when the memory budget has room for its copies. Blocks of a CUDA tensor are copied to pinned memory, which
torch's host allocator recycles.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dcp_cloud.format.archive import TensorRecord, is_row_major
from dcp_cloud.format.layout import BLOCK_BYTES, PAGE_BYTES
from dcp_cloud.format.tensors import is_run_of_memory, plan_record, prepare_tensor, tensor_bytes
from dcp_cloud.transfer.span import Room, Span

# Shorter blocks come from the heap: a mapping of its own costs more than they do.
_MAP_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """The bytes of a tensor, in the order in which they are stored.

    Args:
        record: What stands before and after them.
        load: Gives the bytes from a start to a stop; a copy if the tensor has to be staged.
        is_staged: Whether ``load`` copies.
    """

    record: TensorRecord
    load: Callable[[int, int], memoryview]
    is_staged: bool

    def blocks(self) -> list[Span]:
        """Cut the bytes into blocks; those of a staged tensor are copied when they are first asked for."""
        stops = range(0, self.record.raw_nbytes, BLOCK_BYTES)
        return [self._block(start, min(start + BLOCK_BYTES, self.record.raw_nbytes)) for start in stops]

    def _block(self, start: int, stop: int) -> Span:
        room = Room(stop - start) if self.is_staged else None
        return Span(stop - start, Kept(lambda: self.load(start, stop)), room=room, page_bytes=PAGE_BYTES)


class Kept:
    """Makes bytes when they are first asked for, and keeps them as long as it is kept itself.

    Args:
        make: Makes the bytes.
    """

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], memoryview]) -> None:
        self._make = make
        self._made: memoryview | None = None

    def __call__(self) -> memoryview:
        """Give the bytes."""
        if self._made is None:
            self._made = self._make()
        return self._made


def open_tensor(
    tensor: torch.Tensor, *, is_on_host: Callable[[torch.Tensor], bool] = lambda tensor: tensor.device.type == "cpu"
) -> TensorSource | None:
    """Find out how a tensor's bytes are to be had, without touching them.

    Args:
        tensor: A tensor on any device, of any strides.
        is_on_host: Whether a tensor's memory can be sent as it is; for tests that have no accelerator.

    Returns:
        The source, or None for what only ``torch.save`` can save.
    """
    if is_on_host(tensor) and is_run_of_memory(tensor):
        prepared = prepare_tensor(tensor)
        if prepared is None or prepared.owns_copy:
            return None
        memory = prepared.memory
        return TensorSource(record=prepared.record, load=lambda start, stop: memory[start:stop], is_staged=False)
    record = plan_record(tensor)
    if record is None or not record.is_plain:
        return None
    source = _in_stored_order(tensor.detach(), record)
    pinned = tensor.device.type == "cuda"

    def load(start: int, stop: int) -> memoryview:
        itemsize = source.element_size()
        block = _room(stop - start, source.dtype, pinned=pinned)
        gather(source, start // itemsize, stop // itemsize, block)
        return tensor_bytes(block)

    return TensorSource(record=record, load=load, is_staged=True)


def row_major_blocks(tensor: torch.Tensor) -> list[Span]:
    """Cut the values of a tensor, in row-major order whatever its strides, into blocks.

    Args:
        tensor: A plain strided tensor on any device.

    Returns:
        Its blocks: its own memory where that is in row-major order, else copies that are made when they are asked for.

    Raises:
        ConfigError: The tensor's memory was freed.
    """
    tensor = tensor.detach()
    stops = range(0, tensor.nbytes, BLOCK_BYTES)
    if tensor.device.type == "cpu" and tensor.layout is torch.strided and _is_row_major(tensor):
        memory = tensor_bytes(tensor)
        return [Span.of(memory[start : start + BLOCK_BYTES]) for start in stops]
    if tensor.itemsize == 1 and tensor.dtype != torch.bool:  # torch cannot copy all of these dtypes
        tensor = tensor.view(torch.uint8)
    return [_staged_block(tensor, start, min(start + BLOCK_BYTES, tensor.nbytes)) for start in stops]


def _staged_block(tensor: torch.Tensor, start: int, stop: int) -> Span:
    def load() -> memoryview:
        block = _room(stop - start, tensor.dtype, pinned=tensor.device.type == "cuda")
        gather(tensor, start // tensor.itemsize, stop // tensor.itemsize, block)
        return tensor_bytes(block)

    return Span(stop - start, Kept(load))


def _is_row_major(tensor: torch.Tensor) -> bool:
    return is_row_major(tuple(tensor.shape), tensor.stride()) and not tensor.is_conj() and not tensor.is_neg()


def _room(nbytes: int, dtype: torch.dtype, *, pinned: bool) -> torch.Tensor:
    """Allocate host memory for a block, whatever the caller's default device is.

    Mapped by itself where it can be helped, so that it is gone when it is let go: from the heap, where each thread has
    an arena that keeps what was freed, 512 MiB of blocks, 64 MiB of them at once, took up 130 to 430 MiB (glibc 2.36).
    """
    if pinned:
        return torch.empty(nbytes // dtype.itemsize, dtype=dtype, device="cpu", pin_memory=True)
    if nbytes < _MAP_BYTES:
        return torch.from_numpy(np.empty(nbytes, dtype=np.uint8)).view(dtype)
    return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=dtype)


def gather(tensor: torch.Tensor, start: int, stop: int, out: torch.Tensor) -> None:
    """Copy elements of a tensor, counted in row-major order.

    Args:
        tensor: Any strides, any device.
        start: First element.
        stop: After the last element.
        out: One-dimensional, ``stop - start`` long, on the host.
    """
    if start >= stop:
        return
    if tensor.dim() <= 1 or tensor.is_contiguous():
        out.copy_(tensor.reshape(-1)[start:stop])
        return
    row = math.prod(tensor.shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        gather(tensor[last], start - last * row, stop - last * row, out)
        return
    if start < first * row:
        gather(tensor[first - 1], start - (first - 1) * row, row, out[: first * row - start])
    if first < last:
        rows = out[first * row - start : last * row - start]
        rows.view(last - first, *tensor.shape[1:]).copy_(tensor[first:last])
    if last * row < stop:
        gather(tensor[last], 0, stop - last * row, out[last * row - start :])


def _in_stored_order(tensor: torch.Tensor, record: TensorRecord) -> torch.Tensor:
    """Turn a tensor so that its row-major order is the order of the stored bytes."""
    if record.strides is None:
        return tensor
    strides = record.strides
    return tensor.permute(sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim)))
