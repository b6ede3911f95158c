"""Tensors on their way from one checkpoint to objects of another form, a bounded number of bytes at a time.

A tensor is cut into pieces of its row-major bytes. Pieces are collected until they make a batch, the batch is read as
one load (in parallel, joined into few requests, verified), and then its pieces are sent while the next batch is read.
No tensor is ever whole in memory, whatever shards it was saved as.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_cloud.checkpoint.boxes import BoxPlanner
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.checkpoint.tiling import Box
from dcp_cloud.errors import UnsupportedFormatError
from dcp_cloud.format.layout import BLOCK_BYTES
from dcp_cloud.transfer.events import EventHook, RequestDone, TransferEvent
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import ObjectUpload, Uploader

# Of what may be in flight a batch is this part: one is read while others are sent.
_BATCHES = 8


class _Piece:
    """A stretch of a tensor's bytes and, once it was read, its memory."""

    __slots__ = ("entry", "fqn", "memory", "start", "stop")

    def __init__(self, fqn: str, entry: TensorStorageMetadata, start: int, stop: int) -> None:
        self.fqn, self.entry, self.start, self.stop = fqn, entry, start, stop
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
    """

    def __init__(self, reader: CloudStorageReader, metadata: Metadata, uploader: Uploader, *, hook: EventHook) -> None:
        self._reader = reader
        self._metadata = metadata
        self._uploader = uploader
        self._hook = hook
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

    def append_tensor(self, upload: ObjectUpload, fqn: str) -> list[Span]:
        """Append the values of a tensor in row-major order.

        Args:
            upload: The object.
            fqn: The tensor's name in the checkpoint.

        Returns:
            Its pieces; their checksums can be asked for when they have been sent.
        """
        entry = self._metadata.state_dict_metadata[fqn]
        if not isinstance(entry, TensorStorageMetadata):
            raise UnsupportedFormatError(f"{fqn!r} is no tensor")
        spans = []
        cuts = _cuts(entry)
        for start, stop in itertools.pairwise(cuts):
            if self._waiting_bytes and self._waiting_bytes + stop - start > self._batch_bytes:
                self.flush()
            piece = _Piece(fqn, entry, start, stop)
            spans.append(Span(stop - start, piece.load, on_sent=self._uploader.budget.release))
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
            self._uploader.budget.acquire(nbytes, own_bytes=steps[0].upload.open_bytes)
            _read(self._reader, self._metadata, pieces, self._hook)
        for step in steps:
            if step.span is None:
                step.upload.end()
            else:
                step.upload.append(step.span)


def _read(reader: CloudStorageReader, metadata: Metadata, pieces: Sequence[_Piece], hook: EventHook) -> None:
    planner = BoxPlanner()
    for piece in pieces:
        _plan(piece, planner)

    def pass_requests(event: TransferEvent) -> None:
        if isinstance(event, RequestDone):
            hook(event)

    reader.fill(metadata, planner.create_local_plan(), planner, hook=pass_requests)


def _plan(piece: _Piece, planner: BoxPlanner) -> None:
    piece.memory = np.empty(piece.stop - piece.start, dtype=np.uint8)
    dtype = piece.entry.properties.dtype
    values = torch.from_numpy(piece.memory).view(dtype)
    first, last = piece.start // dtype.itemsize, piece.stop // dtype.itemsize
    position = 0
    for box in linear_boxes(tuple(piece.entry.size), first, last):
        numel = math.prod(box.sizes)
        planner.add(piece.fqn, piece.entry, box, values[position : position + numel].view(box.sizes))
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


def _cuts(entry: TensorStorageMetadata) -> list[int]:
    """Choose where pieces begin and end: where blocks do that have checksums, as far as shards are runs of bytes."""
    shape, itemsize = tuple(entry.size), entry.properties.dtype.itemsize
    nbytes = math.prod(shape) * itemsize
    runs = [_run(shape, tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
    cuts = {0, nbytes}
    for run in runs if None not in runs else [(0, math.prod(shape))]:
        if run is not None:
            cuts.update(range(run[0] * itemsize, run[1] * itemsize, BLOCK_BYTES))
    return sorted(cuts)


def _run(shape: tuple[int, ...], offsets: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, int] | None:
    """Give the run of elements that a shard is, or None if it is scattered."""
    inner = len(shape)
    while inner and sizes[inner - 1] == shape[inner - 1]:
        inner -= 1
    if any(size != 1 for size in sizes[: max(inner - 1, 0)]):
        return None
    start, stride = 0, 1
    for offset, size in zip(reversed(offsets), reversed(shape), strict=True):
        start += offset * stride
        stride *= size
    return start, start + math.prod(sizes)
