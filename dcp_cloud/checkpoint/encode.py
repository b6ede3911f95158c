"""Turning the items of a save plan into bytes to append to an object.

A plain tensor becomes header, memory, trailer: exactly what ``torch.save`` writes, without copying the memory. What the
emitter does not know goes through ``torch.save``; byte items are the planner's own bytes; stream transforms work on
whatever the item would have been.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from dcp_cloud.checkpoint.staging import Kept, TensorSource, open_tensor
from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import CheckpointError, UnsupportedFormatError
from dcp_cloud.format.archive import TensorRecord
from dcp_cloud.format.layout import RawData, StoredItem
from dcp_cloud.format.transforms import transform_bytes
from dcp_cloud.transfer.budget import Account
from dcp_cloud.transfer.span import Span, crc32_of
from dcp_cloud.transfer.upload import ObjectUpload

# torch's records add 1.5 to 1.7 kB around a tensor (measured for all dtypes); byte items are small.
_OVERHEAD_BYTES = 4096
# Tensors up to this length are joined with their header and trailer.
_JOIN_BYTES = 64 * 1024


def estimate_bytes(item: WriteItem) -> int:
    """Give an upper bound for the stored length of an item that is not transformed.

    Args:
        item: An item of the save plan.

    Returns:
        Bytes. For byte items, whose length is not known before they are made, a guess.
    """
    if item.tensor_data is None:
        return 64 * 1024
    numel = 1
    for length in item.tensor_data.chunk.sizes:
        numel *= length
    return numel * item.tensor_data.properties.dtype.itemsize + _OVERHEAD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItem:
    """An item whose bytes are under way; what has to be recorded of it is known when they are sent.

    Args:
        item: The item of the save plan.
        size_bytes: Stored length.
        describe: Gives the record; call it after the upload.
    """

    item: WriteItem
    size_bytes: int
    describe: Callable[[], StoredItem]


class ItemEncoder:
    """Encodes the items of one save, one after the other, on one thread.

    Args:
        planner: Gives the tensors and bytes.
        extensions: torch's stream transforms, in the order they are applied.
        budget: Bounds what is made in memory to be sent.
        is_on_host: Whether a tensor's memory can be sent as it is; for tests that have no accelerator.
    """

    def __init__(
        self,
        planner: SavePlanner,
        extensions: Sequence[Any],
        budget: Account,
        *,
        is_on_host: Callable[[torch.Tensor], bool] = lambda tensor: tensor.device.type == "cpu",
    ) -> None:
        self._is_on_host = is_on_host
        self._planner = planner
        self._extensions = extensions
        self._budget = budget

    def append(self, item: WriteItem, upload: ObjectUpload) -> EncodedItem:
        """Append an item's bytes to an object, waiting while enough is under way.

        Args:
            item: The item.
            upload: The object.

        Returns:
            The encoded item.

        Raises:
            CheckpointError: The planner gave something else than the plan says.
            UnsupportedFormatError: The tensor is sparse or has no data.
        """
        data = self._planner.resolve_data(item)
        if item.type == WriteItemType.BYTE_IO:
            if not isinstance(data, io.BytesIO):
                raise _surprise(item, data, "bytes")
            return self._append_bytes(item, upload, *transform_bytes(data.getvalue(), self._extensions))
        if not isinstance(data, torch.Tensor):
            raise _surprise(item, data, "a tensor")
        data = data.to_local() if isinstance(data, DTensor) else data
        if data.layout is not torch.strided or data.device.type == "meta":
            raise UnsupportedFormatError(
                f"{item.index.fqn!r} cannot be stored",
                cause="it has no data" if data.device.type == "meta" else f"its layout is {data.layout}",
                hint="materialise it first" if data.device.type == "meta" else "save its indices and values instead",
            )
        source = None if self._extensions else open_tensor(data, is_on_host=self._is_on_host)
        if source is None:
            return self._append_saved(item, upload, data)
        is_as_planned = _is_as_planned(item, data)
        if source.record.raw_nbytes <= _JOIN_BYTES:
            return self._append_small(item, upload, source, is_as_planned=is_as_planned)
        return self._append_tensor(item, upload, source, is_as_planned=is_as_planned)

    def _append_tensor(
        self, item: WriteItem, upload: ObjectUpload, source: TensorSource, *, is_as_planned: bool
    ) -> EncodedItem:
        record = source.record
        start = upload.size_bytes
        blocks = source.blocks()
        trailer = Span(record.trailer_nbytes, Kept(lambda: memoryview(record.trailer(crc32_of(blocks)))))
        spans = (Span.of(record.header), *blocks, trailer)
        for span in spans:
            upload.append(span)
        size_bytes = upload.size_bytes - start

        def describe() -> StoredItem:  # must not hold the memory: the item is long sent when this is called
            crcs = tuple(crc for block in blocks for crc in block.page_crc32s())
            return StoredItem(
                key=upload.key,
                offset=start,
                size_bytes=size_bytes,
                crc32=crc32_of(spans),
                raw=_raw_data(record, start, crc32_of(blocks), crcs) if is_as_planned else None,
            )

        return EncodedItem(item=item, size_bytes=size_bytes, describe=describe)

    def _append_small(
        self, item: WriteItem, upload: ObjectUpload, source: TensorSource, *, is_as_planned: bool
    ) -> EncodedItem:
        """Append a tensor so short that copying it is cheaper than keeping account of its pieces."""
        record, start = source.record, upload.size_bytes
        memory = source.load(0, record.raw_nbytes)
        crc = crc32(memory)
        data = b"".join((record.header, memory, record.trailer(crc)))
        upload.append_copy([data])
        raw = _raw_data(record, start, crc, ()) if is_as_planned else None
        stored = StoredItem(key=upload.key, offset=start, size_bytes=len(data), crc32=crc32(data), raw=raw)
        return EncodedItem(item=item, size_bytes=stored.size_bytes, describe=lambda: stored)

    def _append_saved(self, item: WriteItem, upload: ObjectUpload, tensor: torch.Tensor) -> EncodedItem:
        """Append a tensor that is made in memory: because it is transformed, or because only torch can save it."""
        held_bytes = 2 * tensor.nbytes  # as it is saved, and what the transforms make of that
        self._budget.acquire(held_bytes, own_bytes=upload.open_bytes)
        try:
            data = _saved(tensor)
        except Exception as error:  # tensor subclasses run code of their own
            raise UnsupportedFormatError(
                f"{item.index.fqn!r} cannot be stored", cause=error, hint="torch.save cannot save it either"
            ) from error
        transformed, descriptors = transform_bytes(data, self._extensions)
        self._budget.release(held_bytes)
        return self._append_bytes(item, upload, transformed, descriptors)

    def _append_bytes(
        self, item: WriteItem, upload: ObjectUpload, data: bytes, descriptors: Sequence[str]
    ) -> EncodedItem:
        self._budget.acquire(len(data), own_bytes=upload.open_bytes)
        start = upload.size_bytes
        span = Span.of(data, on_sent=self._budget.release)
        upload.append(span)

        def describe() -> StoredItem:
            return StoredItem(
                key=upload.key,
                offset=start,
                size_bytes=span.nbytes,
                transforms=tuple(descriptors),
                crc32=span.crc32(),
            )

        return EncodedItem(item=item, size_bytes=span.nbytes, describe=describe)


def _saved(tensor: torch.Tensor) -> bytes:
    """Save a tensor as torch's own writer does: detached, on the CPU, without the rest of its storage."""
    tensor = tensor.detach().cpu()
    if tensor.layout == torch.strided and tensor.untyped_storage().size() != tensor.nbytes:
        tensor = tensor.clone()
    stream = io.BytesIO()
    torch.save(tensor, stream)
    return stream.getvalue()


def _is_as_planned(item: WriteItem, tensor: torch.Tensor) -> bool:
    """Tell whether the tensor is the one the plan announced; only then may a reader do without its header."""
    planned = item.tensor_data
    return (
        planned is not None
        and tensor.dtype == planned.properties.dtype
        and tuple(tensor.shape) == tuple(planned.chunk.sizes)
    )


def _raw_data(record: TensorRecord, start: int, crc32: int, page_crc32: tuple[int, ...]) -> RawData | None:
    """Describe the bare bytes; None where they are not the values themselves."""
    if not record.is_plain:
        return None
    return RawData(
        offset=start + len(record.header),
        size_bytes=record.raw_nbytes,
        strides=record.strides,
        crc32=crc32,
        page_crc32=page_crc32 if len(page_crc32) > 1 else (),
    )


def _surprise(item: WriteItem, data: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the planner gave {type(data).__name__} for {item.index.fqn!r} where the plan says {expected}",
        hint="look at the resolve_data method of the save planner",
    )
