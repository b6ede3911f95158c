"""Reads that fill storages and tensors from the records of a file, verified by the file's own checksums."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch

from dcp_cloud.checkpoint.landing import LandingConfig, StoredTensor, extent_bytes, filling, plan_landing
from dcp_cloud.crc32 import combine_crc32, crc32
from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.experimental.index import Record
from dcp_cloud.experimental.pickled import Empty
from dcp_cloud.format.archive import is_row_major
from dcp_cloud.format.tensors import tensor_bytes
from dcp_cloud.transfer.download import Target


def fill_storage(empty: Empty, *, key: str, config: LandingConfig) -> Iterator[Target]:
    """Plan the reads that fill a whole storage.

    Args:
        empty: The storage, on any device.
        key: Key of the file.
        config: Sizes.

    Yields:
        The reads; none for a storage that holds nothing or is on the meta device.

    Raises:
        CorruptCheckpointError: The pickle made the storage another length than its bytes have.
    """
    record, storage = empty.record, empty.storage
    if storage.device.type == "meta" or not record.nbytes:
        return
    if storage.nbytes() != record.nbytes:
        raise CorruptCheckpointError(
            "a stored tensor reaches beyond its bytes", key=key, hint="load another checkpoint, this one is damaged"
        )
    yield from _fill_whole(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage), record, key, config)


def fill_tensor(
    target: torch.Tensor, source: torch.Tensor, record: Record, *, key: str, label: str, config: LandingConfig
) -> Iterator[Target]:
    """Plan the reads that fill a tensor with a stored one, whose strides may be any.

    Args:
        target: A plain tensor of the same shape; any strides and device.
        source: The stored tensor, without data: strided, neither quantised nor conjugated.
        record: The bytes of its storage.
        key: Key of the file.
        label: The tensor's name, for messages.
        config: Sizes.

    Yields:
        The reads.

    Raises:
        CorruptCheckpointError: It reaches beyond its bytes.
    """
    if not target.numel():
        return
    shape, strides = tuple(source.shape), source.stride()
    skipped_bytes = int(source.storage_offset()) * source.itemsize
    is_whole = skipped_bytes == 0 and source.nbytes == record.nbytes and is_row_major(shape, strides)
    is_plain = target.device.type == "cpu" and target.dtype == source.dtype and target.is_contiguous()
    if is_whole and is_plain and type(target) is torch.Tensor and not (target.is_conj() or target.is_neg()):
        memory = torch.frombuffer(tensor_bytes(target), dtype=torch.uint8)
        yield from _fill_whole(memory, record, key, config)
        return
    nbytes = extent_bytes(source)
    stored = StoredTensor(
        key=key,
        start=record.start + skipped_bytes,
        nbytes=nbytes,
        shape=shape,
        strides=None if is_row_major(shape, strides) else strides,
        dtype=source.dtype,
        crc32=record.crc32 if nbytes == record.nbytes <= config.tile_bytes else None,
        page_crc32=(),
        label=label,
    )
    yield record.header_target(key)
    yield from plan_landing(stored, (0,) * len(shape), target, config)


def _fill_whole(target: torch.Tensor, record: Record, key: str, config: LandingConfig) -> Iterator[Target]:
    """Read all bytes of a record, piece by piece, and compare their checksum when the last one is in."""
    yield record.header_target(key)
    whole = _Whole(record, key)
    for start in range(0, record.nbytes, config.tile_bytes):
        piece = target[start : start + config.tile_bytes]
        yield Target(
            key=key,
            start=record.start + start,
            nbytes=piece.numel(),
            memory=memoryview(piece.numpy()) if target.device.type == "cpu" else None,  # type: ignore[arg-type]
            convert=_taker(whole, start, None if target.device.type == "cpu" else piece),
            label=record.label,
        )


def _taker(whole: _Whole, start: int, copy_to: torch.Tensor | None) -> Callable[[memoryview], None]:
    def take(memory: memoryview) -> None:
        whole.take(start, memory)
        if copy_to is not None:
            with filling(copy_to):
                copy_to.copy_(torch.frombuffer(memory, dtype=torch.uint8))

    return take


class _Whole:
    """Puts the checksum of a record together from those of its pieces, which come in any order from any thread.

    Args:
        record: The record.
        key: Key of the file, for the message.
    """

    def __init__(self, record: Record, key: str) -> None:
        self._record = record
        self._key = key
        self._lock = threading.Lock()
        self._pieces: dict[int, tuple[int, int]] = {}
        self._missing_bytes = record.nbytes

    def take(self, start: int, memory: memoryview) -> None:
        """Take note of a piece.

        Args:
            start: Its offset in the record.
            memory: Its bytes.

        Raises:
            CorruptCheckpointError: It was the last one, and the whole is not what was saved.
        """
        if self._record.crc32 is None:
            return
        crc = crc32(memory)
        with self._lock:
            self._pieces[start] = (crc, memory.nbytes)
            self._missing_bytes -= memory.nbytes
            is_last = self._missing_bytes == 0
        if not is_last:
            return
        found = 0
        for _, (piece_crc, nbytes) in sorted(self._pieces.items()):
            found = combine_crc32(found, piece_crc, nbytes)
        if found != self._record.crc32:
            raise CorruptCheckpointError(
                f"the stored bytes of {self._record.label!r} are not the bytes that were saved",
                key=self._key,
                cause=f"CRC-32 {found:08x}, the file says {self._record.crc32:08x}",
                hint="load another checkpoint, or restore the file from a copy",
            )
