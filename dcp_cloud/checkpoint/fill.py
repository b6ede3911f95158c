"""Filling the targets of a load plan: from read items to byte ranges, from bytes to tensors."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_cloud.checkpoint.landing import LandingConfig, StoredTensor, filling, plan_landing
from dcp_cloud.config import KIB, MIB, TransferConfig
from dcp_cloud.errors import CorruptCheckpointError, OutOfRangeError, StateDictMismatchError
from dcp_cloud.format.archive import is_row_major
from dcp_cloud.format.items import load_item
from dcp_cloud.format.layout import BLOCK_BYTES, RawData, StoredItem, from_storage_info
from dcp_cloud.format.parse import NeedMore, RawLayout, parse_header
from dcp_cloud.format.rehearsal import is_archive
from dcp_cloud.format.transforms import undo_transforms
from dcp_cloud.format.values import check_value
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.download import Check, Downloader, Target
from dcp_cloud.transfer.events import EventHook, Planned
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

# Items of other writers begin with up to 768 bytes before the tensor's own; one small read shows where those begin.
_HEADER_BYTES = 1 * KIB
# Up to this length an item of another writer is fetched whole: cheaper than looking at its header first.
_WHOLE_BYTES = 64 * KIB
# Unpacking takes several times the length of an item, so longer ones are unpacked one at a time.
_PARALLEL_BYTES = 1 * MIB
# Temporaries up to this length are allocated on the word of .metadata alone.
_UNCHECKED_BYTES = 64 * MIB
# More than any codec makes of data that is not made to exhaust the reader's memory.
_MAX_RATIO = 100


@dataclass(frozen=True, slots=True)
class _Read:
    """A read item and where its bytes are."""

    item: ReadItem
    stored: StoredItem

    @property
    def is_bytes(self) -> bool:
        return self.item.type == LoadItemType.BYTE_IO

    @property
    def has_header(self) -> bool:
        """Whether to look at the item's header rather than read it whole."""
        stored = self.stored
        is_ours = stored.raw is not None
        return not (self.is_bytes or is_ours or stored.transforms) and stored.size_bytes > _WHOLE_BYTES

    @property
    def label(self) -> str:
        return repr(self.item.storage_index.fqn)


class PlanFiller:
    """Executes one rank's load plan.

    Args:
        store: Store rooted at the checkpoint's prefix.
        transfer: Range length, gaps, concurrency, memory, retries.
        metadata: The checkpoint's metadata.
        planner: Gives the targets.
        registry: torch's registry of stream transforms, or None for its default.
        hook: Told of progress.
        allow_global: Allows further names in values that are no tensors.
        unsafe_values: Hand such values to the planner unchecked.
    """

    def __init__(
        self,
        store: ObjectStore,
        transfer: TransferConfig,
        metadata: Metadata,
        planner: LoadPlanner,
        registry: Any,  # noqa: ANN401 - torch 2.6 has no such class
        *,
        hook: EventHook,
        allow_global: Callable[[str, str], object | None] | None = None,
        unsafe_values: bool = False,
    ) -> None:
        self._metadata = metadata
        self._planner = planner
        self._allow_global = allow_global
        self._unsafe_values = unsafe_values
        # A planner with a way of its own may store anything; what begins like an archive is checked all the same.
        self._opens_pickles = type(planner).load_bytes is DefaultLoadPlanner.load_bytes
        self._registry = registry
        self._chunks: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
        self._hook = hook
        self._store = RetryingStore(store, Retrier(config=transfer.retry, hook=hook))
        self._downloader = Downloader(store, transfer, hook=hook)
        self._transfer = transfer

    def fill(self, plan: LoadPlan) -> None:
        """Fetch everything the plan wants and hand it to the planner.

        Args:
            plan: The plan.

        Raises:
            CorruptCheckpointError: Stored bytes or records are damaged.
            StateDictMismatchError: A target has another size than what the plan says.
            DcpCloudError: A request failed.
        """
        reads = [self._locate(item) for item in plan.items]
        layouts = self._look_at_headers(reads)
        targets = [self._byte_target(read) for read in reads if read.is_bytes and read.stored.size_bytes]
        tensors = [(read, self._resolve(read.item)) for read in reads if not read.is_bytes]
        config = LandingConfig(
            tile_bytes=max(self._transfer.part_size_bytes // BLOCK_BYTES, 1) * BLOCK_BYTES,
            max_gap_bytes=self._transfer.gap_bytes,
            load_bytes=sum(tensor.nbytes for _, tensor in tensors),
        )
        for read, tensor in tensors:
            source = self._stored_tensor(read, layouts.get(read.stored))
            if tensor.numel() == 0:
                continue
            if source is None:
                targets.append(self._whole_target(read, tensor))
            else:
                targets.extend(plan_landing(source, read.item.storage_offsets, tensor, config))
        self._check_lengths(targets)
        total = sum(target.nbytes for target in targets)
        self._hook(Planned(phase="load", size_bytes=total, items=len(plan.items)))
        self._downloader.run(targets)
        for read in reads:
            if read.is_bytes and not read.stored.size_bytes:
                self._planner.load_bytes(read.item, io.BytesIO())
        for read, tensor in tensors:
            self._planner.commit_tensor(read.item, tensor)

    def _check_lengths(self, targets: Iterable[Target]) -> None:
        """See that large temporaries have objects behind them: a forged length must not exhaust the memory."""
        stops: dict[str, int] = {}
        for target in targets:
            if target.memory is None and target.nbytes > _UNCHECKED_BYTES:
                stops[target.key] = max(stops.get(target.key, 0), target.start + target.nbytes)
        for key, stop in stops.items():
            size_bytes = self._store.head(key).size_bytes
            if stop > size_bytes:
                raise OutOfRangeError(
                    "the object ends before its items do", key=key, cause=f"{size_bytes} bytes, {stop} expected"
                )

    def _locate(self, item: ReadItem) -> _Read:
        info = (self._metadata.storage_data or {}).get(item.storage_index)
        if info is None:
            raise CorruptCheckpointError(
                f"the checkpoint lists {item.storage_index.fqn!r} but does not say where it is",
                cause="it has no storage record",
                hint="it was probably written by a save that lost data; load another checkpoint",
            )
        stored = from_storage_info(info)
        if stored.size_bytes == 0 and item.type != LoadItemType.BYTE_IO:
            raise CorruptCheckpointError(f"the record of {item.storage_index.fqn!r} has no bytes", key=stored.key)
        return _Read(item, stored)

    def _resolve(self, item: ReadItem) -> torch.Tensor:
        tensor = self._planner.resolve_tensor(item).detach()
        if tuple(tensor.shape) != tuple(item.lengths):
            raise StateDictMismatchError(
                f"{item.dest_index.fqn!r} has another shape than the plan",
                cause=f"{list(tensor.shape)} in the state dict, {list(item.lengths)} in the plan",
                hint="look at the resolve_tensor method of the load planner",
            )
        return tensor

    def _stored_tensor(self, read: _Read, layout: RawLayout | None) -> StoredTensor | None:
        """Find the bare bytes of a stored tensor; None if it has to be read whole through torch.load."""
        raw, chunk = read.stored.raw, self._chunk(read.item)
        if raw is not None and chunk is not None:
            shape, dtype = chunk
            if raw.strides is None and raw.size_bytes != math.prod(shape) * dtype.itemsize:
                raise _misfit(read, shape, f"{raw.size_bytes} bytes of {dtype}")
            return _from_record(read, raw, shape, dtype)
        if layout is None:
            return None
        if chunk is not None and chunk[0] != layout.shape:
            raise _misfit(read, chunk[0], layout.shape)
        return _from_header(read, layout)

    def _chunk(self, item: ReadItem) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Find shape and dtype of the chunk that an item reads from."""
        fqn, offset = item.storage_index.fqn, item.storage_index.offset
        entry = self._metadata.state_dict_metadata.get(fqn)
        if not isinstance(entry, TensorStorageMetadata):
            return None
        if fqn not in self._chunks:
            self._chunks[fqn] = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
        sizes = self._chunks[fqn].get(tuple(offset) if offset is not None else (0,) * len(entry.size))
        dtype = entry.properties.dtype
        return (sizes, dtype) if sizes is not None and isinstance(dtype, torch.dtype) else None

    def _look_at_headers(self, reads: Iterable[_Read]) -> dict[StoredItem, RawLayout]:
        """Read the headers of long items that carry no record of ours, all at once; longer headers once more."""
        layouts: dict[StoredItem, RawLayout] = {}
        wanted = dict.fromkeys((read.stored for read in reads if read.has_header), _HEADER_BYTES)
        while wanted:
            heads: dict[StoredItem, bytes] = {}
            self._downloader.run(
                [
                    Target(key=stored.key, start=stored.offset, nbytes=nbytes, done=partial(_keep, heads, stored))
                    for stored, nbytes in wanted.items()
                ]
            )
            wanted = {}
            for stored, head in heads.items():
                layout = parse_header(head, item_nbytes=stored.size_bytes)
                if isinstance(layout, NeedMore):
                    wanted[stored] = layout.nbytes
                elif layout is not None and not (layout.conj or layout.neg):
                    layouts[stored] = layout
        return layouts

    def _byte_target(self, read: _Read) -> Target:
        def done(memory: memoryview) -> None:
            value = self._plain(read, memory)
            if not self._unsafe_values and (self._opens_pickles or is_archive(value)):
                check_value(value, key=read.stored.key, label=read.label, allow_global=self._allow_global)
            self._planner.load_bytes(read.item, io.BytesIO(value))

        return self._item_target(read, done=done)

    def _whole_target(self, read: _Read, target: torch.Tensor) -> Target:
        item, chunk = read.item, self._chunk(read.item)

        def unpack(memory: memoryview) -> None:
            source = load_item(self._plain(read, memory), key=read.stored.key)
            shape = tuple(source.shape)
            if chunk is not None and chunk[0] != shape:
                raise _misfit(read, chunk[0], shape)
            for dim, (low, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                source = source.narrow(dim, low, length)
            with filling(target):
                target.copy_(source)

        plain_bytes = math.prod(chunk[0]) * chunk[1].itemsize if chunk is not None else read.stored.size_bytes
        if max(plain_bytes, read.stored.size_bytes) > _PARALLEL_BYTES:
            return self._item_target(read, done=unpack)
        return self._item_target(read, convert=unpack)

    def _item_target(
        self,
        read: _Read,
        *,
        convert: Callable[[memoryview], None] | None = None,
        done: Callable[[memoryview], None] | None = None,
    ) -> Target:
        stored = read.stored
        checks = () if stored.crc32 is None else (Check(0, stored.size_bytes, stored.crc32),)
        return Target(
            key=stored.key,
            start=stored.offset,
            nbytes=stored.size_bytes,
            checks=checks,
            convert=convert,
            done=done,
            label=read.label,
        )

    def _plain(self, read: _Read, memory: memoryview) -> bytes:
        data = bytes(memory)
        if not read.stored.transforms:
            return data
        return undo_transforms(
            data, read.stored.transforms, self._registry, limit_nbytes=self._plain_limit(read), key=read.stored.key
        )

    def _plain_limit(self, read: _Read) -> int:
        """Bound what a transformed item may become: a tensor's size is known, other objects compress so far at most."""
        if not read.is_bytes and (chunk := self._chunk(read.item)) is not None:
            shape, dtype = chunk
            return math.prod(shape) * dtype.itemsize + MIB
        return max(_MAX_RATIO * read.stored.size_bytes, 256 * MIB)


def _from_record(read: _Read, raw: RawData, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    return StoredTensor(
        key=read.stored.key,
        start=raw.offset,
        nbytes=raw.size_bytes,
        shape=shape,
        strides=raw.strides,
        dtype=dtype,
        crc32=raw.crc32,
        page_crc32=raw.page_crc32,
        page_bytes=raw.page_bytes,
        label=read.label,
    )


def _from_header(read: _Read, layout: RawLayout) -> StoredTensor:
    skipped = layout.storage_offset * layout.dtype.itemsize
    return StoredTensor(
        key=read.stored.key,
        start=read.stored.offset + layout.raw_offset + skipped,
        nbytes=layout.raw_nbytes - skipped,
        shape=layout.shape,
        strides=None if is_row_major(layout.shape, layout.strides) else layout.strides,
        dtype=layout.dtype,
        crc32=None,
        page_crc32=(),
        label=read.label,
    )


def _keep(heads: dict[StoredItem, bytes], stored: StoredItem, memory: memoryview) -> None:
    heads[stored] = bytes(memory)


def _misfit(read: _Read, listed: tuple[int, ...], found: tuple[int, ...] | str) -> CorruptCheckpointError:
    stored = found if isinstance(found, str) else list(found)
    return CorruptCheckpointError(
        f"the stored tensor {read.label} is not the one that the checkpoint lists",
        key=read.stored.key,
        cause=f"shape {list(listed)} in .metadata, {stored} in the object",
        hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
    )
