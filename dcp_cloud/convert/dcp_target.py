"""Writing a checkpoint in torch's distributed form, streamed: items as ``torch.save`` makes them, the commit last."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from dcp_cloud.checkpoint.staging import Kept
from dcp_cloud.checkpoint.stream import TensorStream
from dcp_cloud.errors import UnsupportedFormatError
from dcp_cloud.format.archive import TensorRecord, tensor_record
from dcp_cloud.format.layout import PAGE_BYTES, RawData, StoredItem, data_key, to_storage_info
from dcp_cloud.transfer.span import Span, crc32_of
from dcp_cloud.transfer.upload import ObjectUpload, Uploader

# torch's records add 1.5 to 1.7 kB around a tensor.
_OVERHEAD_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor of the checkpoint to be.

    Args:
        source: Its name in the checkpoint that is read.
        dtype: Its dtype.
        shape: Its shape.
    """

    source: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length of its values, bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ItemStream:
    """Appends the items of a new checkpoint to its objects.

    Args:
        stream: Streams the tensors.
        uploader: Sends the objects.
        save_id: The id of the new checkpoint's save.
        max_object_bytes: Begin another object when one would get longer.
    """

    def __init__(self, stream: TensorStream, uploader: Uploader, *, save_id: str, max_object_bytes: int) -> None:
        self._stream = stream
        self._uploader = uploader
        self._save_id = save_id
        self._max_bytes = max_object_bytes
        self._upload: ObjectUpload | None = None
        self._position = 0
        self._objects = 0
        self._left_bytes = 0
        self._described: list[tuple[MetadataIndex, int, Callable[[], StoredItem]]] = []

    def write(self, tensors: Mapping[str, NewTensor], values: Mapping[str, object]) -> None:
        """Append all items.

        Args:
            tensors: New name to tensor.
            values: New name to value.
        """
        self._left_bytes = sum(tensor.nbytes + _OVERHEAD_BYTES for tensor in tensors.values())
        for name, value in values.items():
            self._append_value(name, value)
        for name, tensor in tensors.items():
            self._append_tensor(name, tensor)
        if self._upload is not None:
            self._stream.end(self._upload)
        self._stream.flush()

    def results(self) -> list[WriteResult]:
        """Describe what was written, after it was sent."""
        return [
            WriteResult(index=index, size_in_bytes=nbytes, storage_data=to_storage_info(describe()))
            for index, nbytes, describe in self._described
        ]

    def _append_value(self, name: str, value: object) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        span = Span.of(buffer.getvalue())
        upload, start = self._at(span.nbytes), self._position
        self._append(upload, span)

        def describe() -> StoredItem:
            return StoredItem(key=upload.key, offset=start, size_bytes=span.nbytes, crc32=span.crc32())

        self._described.append((MetadataIndex(name), span.nbytes, describe))

    def _append_tensor(self, name: str, tensor: NewTensor) -> None:
        record = _record(name, tensor)
        upload, start = self._at(tensor.nbytes + _OVERHEAD_BYTES), self._position
        self._append(upload, Span.of(record.header))
        blocks = self._stream.append_tensor(upload, tensor.source, page_bytes=PAGE_BYTES)
        self._position += tensor.nbytes
        self._append(upload, Span(record.trailer_nbytes, Kept(lambda: memoryview(record.trailer(crc32_of(blocks))))))
        self._left_bytes -= tensor.nbytes + _OVERHEAD_BYTES
        size_bytes = self._position - start

        def describe() -> StoredItem:
            pages = tuple(crc for block in blocks for crc in block.page_crc32s())
            raw = RawData(
                offset=start + len(record.header),
                size_bytes=tensor.nbytes,
                strides=None,
                crc32=crc32_of(blocks),
                page_crc32=pages if len(pages) > 1 else (),
            )
            return StoredItem(key=upload.key, offset=start, size_bytes=size_bytes, raw=raw)

        index = MetadataIndex(name, torch.Size([0] * len(tensor.shape)))
        self._described.append((index, size_bytes, describe))

    def _append(self, upload: ObjectUpload, span: Span) -> None:
        self._stream.append(upload, span)
        self._position += span.nbytes

    def _at(self, nbytes: int) -> ObjectUpload:
        """Give the object for the next item."""
        if self._upload is not None and self._position + nbytes > self._max_bytes:
            self._stream.end(self._upload)
            self._upload = None
        if self._upload is None:
            key = data_key(0, self._objects, self._save_id)
            expected_bytes = min(max(self._left_bytes, nbytes), max(self._max_bytes, nbytes))
            self._upload = self._uploader.begin(key, expected_bytes=expected_bytes)
            self._objects += 1
            self._position = 0
        return self._upload


def new_metadata(
    tensors: Mapping[str, NewTensor], values: Mapping[str, object], paths: Mapping[str, tuple[str | int, ...]]
) -> Metadata:
    """Make the metadata of a new checkpoint, without the records of its storage.

    Args:
        tensors: New name to tensor.
        values: New name to value.
        paths: New name to the path in the nested state dict.
    """
    metadata = Metadata(state_dict_metadata={}, planner_data=dict(paths), storage_data={})
    for name in values:
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
    for name, tensor in tensors.items():
        shape = torch.Size(tensor.shape)
        chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
        properties = TensorProperties(dtype=tensor.dtype)
        metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, shape, [chunk])
    return metadata


def _record(name: str, tensor: NewTensor) -> TensorRecord:
    strides = torch.empty(tensor.shape, device="meta").stride()
    record = tensor_record(tensor.dtype, tensor.shape, strides)
    if record is None:
        raise UnsupportedFormatError(
            f"{name!r} cannot be stored in a distributed checkpoint", cause=f"torch.save cannot save {tensor.dtype}"
        )
    return record
