"""Tensors on their way from one checkpoint to objects of another form, a bounded number of bytes at a time.

A tensor is cut into pieces of its row-major bytes. Pieces are collected until they make a batch, the batch is read as
one load (in parallel, joined into few requests, verified), and then its pieces are sent while the next batch is read.
No tensor is ever whole in memory, whatever shards it was saved as.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from dcp_cloud.checkpoint.boxes import BoxPlanner
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.checkpoint.tiling import Box
from dcp_cloud.errors import CorruptCheckpointError, UnsupportedFormatError
from dcp_cloud.format.layout import BLOCK_BYTES, from_storage_info
from dcp_cloud.transfer.events import EventHook, only_requests
from dcp_cloud.transfer.span import Span, crc32_of
from dcp_cloud.transfer.upload import ObjectUpload, Uploader

# Of what may be in flight a batch is this part: one is read while others are sent.
_BATCHES = 8


class _Piece:
    """A stretch of a tensor's bytes and, once it was read, its memory."""

    __slots__ = ("entry", "fqn", "memory", "start", "stop", "verify")

    def __init__(self, fqn: str, entry: TensorStorageMetadata, start: int, stop: int) -> None:
        self.fqn, self.entry, self.start, self.stop = fqn, entry, start, stop
        self.verify: Callable[[], None] | None = None
        self.memory: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None

    def load(self) -> memoryview:
        assert self.memory is not None  # noqa: S101 - read before its span was appended
        return memoryview(self.memory)  # type: ignore[arg-type]  # arrays are buffers


@dataclass(frozen=True, slots=True)
class _Step:
    """Something to be appended to an object when all before it has been."""

    upload: ObjectUpload
    span: Span | None
    piece: _Piece | None = None


class TensorStream:
    """Appends tensors of a checkpoint to objects, in the order in which they are given.

    Args:
        reader: Reads the checkpoint.
        metadata: What its ``read_metadata`` returned.
        uploader: Sends the objects.
        hook: Told of the requests of reading; what was sent is told by the uploader.
        crc32: Checksums of whole tensors, in row-major order, where the source has such; each is compared before the
            end of its tensor is sent.
    """

    def __init__(
        self,
        reader: CloudStorageReader,
        metadata: Metadata,
        uploader: Uploader,
        *,
        hook: EventHook,
        crc32: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._reader = reader
        self._metadata = metadata
        self._uploader = uploader
        self._hook = hook
        self._crc32 = crc32
        self._batch_bytes = max(uploader.budget.limit_bytes // _BATCHES, 1)
        self._steps: list[_Step] = []
        self._waiting_bytes = 0

    def append(self, upload: ObjectUpload, span: Span) -> None:
        """Append bytes that are there already.

        Args:
            upload: The object.
            span: The bytes.
        """
        self._steps.append(_Step(upload, span))

    def append_tensor(self, upload: ObjectUpload, fqn: str, *, page_bytes: int = 0) -> list[Span]:
        """Append the values of a tensor in row-major order.

        Args:
            upload: The object.
            fqn: The tensor's name in the checkpoint.
            page_bytes: Keep the checksums of pages of this length, too; 0 for none.

        Returns:
            Its pieces; their checksums can be asked for when they have been sent.
        """
        entry = self._metadata.state_dict_metadata[fqn]
        if not isinstance(entry, TensorStorageMetadata):
            raise UnsupportedFormatError(f"{fqn!r} is no tensor")
        spans: list[Span] = []
        nbytes = math.prod(entry.size) * entry.properties.dtype.itemsize
        for start in range(0, nbytes, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, nbytes)
            if self._waiting_bytes and self._waiting_bytes + stop - start > self._batch_bytes:
                self.flush()
            piece = _Piece(fqn, entry, start, stop)
            release = self._uploader.budget.release
            spans.append(Span(stop - start, piece.load, on_sent=release, page_bytes=page_bytes))
            if stop == nbytes and (crc := self._crc32.get(fqn)) is not None:
                piece.verify = partial(_verify, fqn, spans, crc)
            self._steps.append(_Step(upload, spans[-1], piece))
            self._waiting_bytes += stop - start
        return spans

    def end(self, upload: ObjectUpload) -> None:
        """Note that an object is complete.

        Args:
            upload: The object.
        """
        self._steps.append(_Step(upload, None))

    def flush(self) -> None:
        """Read what is waiting and hand it to the uploader.

        Raises:
            DcpCloudError: Reading or sending failed.
        """
        steps, self._steps = self._steps, []
        pieces = [step.piece for step in steps if step.piece is not None]
        if pieces:
            nbytes, self._waiting_bytes = self._waiting_bytes, 0
            # What the open part holds, and the batch, are sent by this thread only: the load must not wait for either.
            budget, open_bytes = self._uploader.budget, steps[0].upload.open_bytes
            budget.acquire(nbytes, own_bytes=open_bytes)
            with budget.parked(open_bytes + nbytes):
                _read(self._reader, self._metadata, pieces, self._hook)
        for step in steps:
            if step.piece is not None and step.piece.verify is not None:
                step.piece.verify()
            if step.span is None:
                step.upload.end()
            else:
                step.upload.append(step.span)


def _read(reader: CloudStorageReader, metadata: Metadata, pieces: Sequence[_Piece], hook: EventHook) -> None:
    planner = BoxPlanner()
    for _, group in groupby(pieces, key=lambda piece: piece.fqn):
        own = list(group)
        if _is_row_major(metadata, own[0]):
            for piece in own:
                _plan([piece], planner)
        else:
            _plan(own, planner)

    reader.fill(metadata, planner.create_local_plan(), planner, hook=only_requests(hook))


def _verify(fqn: str, spans: Sequence[Span], crc: int) -> None:
    if crc32_of(spans) != crc:
        raise CorruptCheckpointError(
            f"the stored bytes of {fqn!r} are not the bytes that were saved",
            cause="their CRC-32 is another",
            hint="restore the file from a copy",
        )


def _is_row_major(metadata: Metadata, piece: _Piece) -> bool:
    """Tell whether the bytes of a piece are known to lie together."""
    records = metadata.storage_data or {}
    stored = [from_storage_info(records[MetadataIndex(piece.fqn, chunk.offsets)]) for chunk in piece.entry.chunks]
    return all(item.raw is not None and item.raw.strides is None for item in stored)


def _plan(pieces: Sequence[_Piece], planner: BoxPlanner) -> None:
    """Plan to read pieces that follow each other: as one where each would touch the same bytes as all others."""
    start, stop = pieces[0].start, pieces[-1].stop
    memory = np.empty(stop - start, dtype=np.uint8)
    for piece in pieces:
        piece.memory = memory[piece.start - start : piece.stop - start]
    entry = pieces[0].entry
    dtype = entry.properties.dtype
    values = torch.from_numpy(memory).view(dtype)
    position = 0
    for box in linear_boxes(tuple(entry.size), start // dtype.itemsize, stop // dtype.itemsize):
        numel = math.prod(box.sizes)
        planner.add(pieces[0].fqn, entry, box, values[position : position + numel].view(box.sizes))
        position += numel


def linear_boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Cut a run of elements, counted in row-major order, into boxes.

    Args:
        shape: Shape of the tensor.
        start: First element.
        stop: After the last element; above ``start``.

    Yields:
        Boxes in order; their elements one after the other are the run.
    """
    if len(shape) <= 1:
        yield Box((start,) if shape else (), (stop - start,) if shape else ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:
        yield from _within(shape, last, start - last * row, stop - last * row)
        return
    if start < first * row:
        yield from _within(shape, first - 1, start - (first - 1) * row, row)
    if first < last:
        yield Box((first, *[0] * (len(shape) - 1)), (last - first, *shape[1:]))
    if last * row < stop:
        yield from _within(shape, last, 0, stop - last * row)


def _within(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Box]:
    for box in linear_boxes(shape[1:], start, stop):
        yield Box((index, *box.offsets), (1, *box.sizes))
