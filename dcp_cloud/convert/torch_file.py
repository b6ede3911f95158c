"""Writing a checkpoint as one file of ``torch.save``, streamed.

torch pickles a state dict whose tensors have memory that nobody has touched, and so takes up none; when it comes to
write a tensor's record, the tensor is streamed from the checkpoint instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dcp_cloud.checkpoint.stream import TensorStream
from dcp_cloud.experimental.emit import Archive, pickle_state
from dcp_cloud.transfer.span import Span, crc32_of
from dcp_cloud.transfer.upload import ObjectUpload, Uploader


class _Queue:
    """What the archive is appended to: spans and tensors wait in the stream until a batch is read.

    Args:
        stream: The stream.
        upload: The object.
    """

    def __init__(self, stream: TensorStream, upload: ObjectUpload) -> None:
        self._stream = stream
        self._upload = upload
        self.size_bytes = 0

    @property
    def open_bytes(self) -> int:
        return self._upload.open_bytes

    def append(self, span: Span) -> None:
        self.size_bytes += span.nbytes
        self._stream.append(self._upload, span)

    def append_tensor(self, fqn: str) -> list[Span]:
        spans = self._stream.append_tensor(self._upload, fqn)
        self.size_bytes += sum(span.nbytes for span in spans)
        return spans


class _StreamedArchive(Archive):
    """Streams storages that stand for tensors of the checkpoint."""

    def __init__(self, queue: _Queue, names: Mapping[int, str]) -> None:
        # What is not streamed are tensors within values, in host memory: no copies, and nothing to wait for here.
        super().__init__(queue, None)
        self._queue = queue
        self._names = names

    def append_storage(self, name: bytes, storage: torch.UntypedStorage) -> None:
        fqn = self._names.get(storage._cdata)
        if fqn is None:  # a tensor within a value
            super().append_storage(name, storage)
            return
        spans: list[Span] = []

        def append() -> None:
            spans.extend(self._queue.append_tensor(fqn))

        self.append_record(name, storage.nbytes(), append, lambda: crc32_of(spans))


def write_torch_file(
    stream: TensorStream,
    uploader: Uploader,
    key: str,
    *,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    nest: Callable[[Mapping[str, Any]], Any],
    expected_bytes: int,
) -> None:
    """Write a state dict.

    Args:
        stream: Streams the tensors.
        uploader: Sends the file.
        key: Its key.
        tensors: Names in the checkpoint, with dtype and shape.
        nest: Makes the state dict from the tensors.
        expected_bytes: An upper bound of the file's length.

    Raises:
        UnsupportedFormatError: ``torch.save`` cannot save the values.
    """
    upload = uploader.begin(key, expected_bytes=expected_bytes, replaces=True)
    stand_ins = {
        name: torch.empty(0, dtype=torch.uint8, device="cpu").view(dtype).new_empty(shape)
        for name, (dtype, shape) in tensors.items()
    }
    names = {tensor.untyped_storage()._cdata: name for name, tensor in stand_ins.items()}
    archive = _StreamedArchive(_Queue(stream, upload), names)
    pickle_state(nest(stand_ins), archive, key=key)
    archive.end()
    stream.end(upload)
    stream.flush()
