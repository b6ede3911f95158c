"""Filling the targets of a load plan: from read items to byte ranges, from bytes to tensors."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_cloud.checkpoint.landing import LandingConfig, StoredTensor, plan_landing
from dcp_cloud.config import KIB, MIB, TransferConfig
from dcp_cloud.errors import CorruptCheckpointError, OutOfRangeError, StateDictMismatchError
from dcp_cloud.format.archive import is_row_major
from dcp_cloud.format.items import load_item
from dcp_cloud.format.layout import BLOCK_BYTES, RawData, StoredItem, from_storage_info
from dcp_cloud.format.parse import RawLayout, parse_header
from dcp_cloud.format.transforms import undo_transforms
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.download import Check, Downloader, Target
from dcp_cloud.transfer.events import EventHook, Planned
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

# Items of other writers begin with up to 768 bytes before the tensor's own; one small read shows where those begin.
_HEADER_BYTES = 1 * KIB
# Up to this length an item of another writer is fetched whole: cheaper than looking at its header first.
_WHOLE_BYTES = 64 * KIB
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
    ) -> None:
        self._metadata = metadata
        self._planner = planner
        self._registry = registry
        self._chunks: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
        self._hook = hook
        self._store = RetryingStore(store, Retrier(config=transfer.retry, hook=hook))
        self._downloader = Downloader(store, transfer, hook=hook)
        self._landing = LandingConfig(
            tile_bytes=max(transfer.part_size_bytes // BLOCK_BYTES, 1) * BLOCK_BYTES,
            max_gap_bytes=transfer.max_gap_bytes,
        )

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
        targets: list[Target] = []
        tensors: list[tuple[ReadItem, torch.Tensor]] = []
        for group in _by_stored_item(reads):
            stored = group[0].stored
            layout = layouts.get((stored.key, stored.offset))
            for read in group:
                if read.item.type == LoadItemType.BYTE_IO:
                    targets.append(self._byte_target(read))
                    continue
                tensor = self._resolve(read.item)
                tensors.append((read.item, tensor))
                source = self._stored_tensor(read, layout)
                if tensor.numel() == 0:
                    continue
                if source is None:
                    targets.append(self._whole_target(read, tensor))
                else:
                    targets.extend(plan_landing(source, read.item.storage_offsets, tensor, self._landing))
        self._check_lengths(targets)
        total = sum(target.nbytes for target in targets)
        self._hook(Planned(phase="load", size_bytes=total, items=len(plan.items)))
        self._downloader.run(targets)
        for item, tensor in tensors:
            self._planner.commit_tensor(item, tensor)

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
        if stored.size_bytes == 0:
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
            return _from_record(read, raw, *chunk)
        return None if layout is None else _from_header(read, layout)

    def _chunk(self, item: ReadItem) -> tuple[tuple[int, ...], torch.dtype] | None:
        """Find shape and dtype of the chunk that an item reads from."""
        fqn, offset = item.storage_index.fqn, item.storage_index.offset
        entry = self._metadata.state_dict_metadata.get(fqn)
        if not isinstance(entry, TensorStorageMetadata):
            return None
        if fqn not in self._chunks:
            self._chunks[fqn] = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks}
        sizes = self._chunks[fqn].get(tuple(offset) if offset is not None else (0,) * len(entry.size))
        return None if sizes is None else (sizes, entry.properties.dtype)

    def _look_at_headers(self, reads: Iterable[_Read]) -> dict[tuple[str, int], RawLayout]:
        """Read the headers of long items that carry no record of ours, all at once."""
        layouts: dict[tuple[str, int], RawLayout] = {}
        targets: list[Target] = []
        for group in _by_stored_item(reads):
            stored = group[0].stored
            is_tensor = group[0].item.type != LoadItemType.BYTE_IO
            if not is_tensor or stored.raw or stored.transforms or stored.size_bytes <= _WHOLE_BYTES:
                continue

            def keep(memory: memoryview, stored: StoredItem = stored) -> None:
                layout = parse_header(bytes(memory), item_nbytes=stored.size_bytes)
                if isinstance(layout, RawLayout) and not (layout.conj or layout.neg):
                    layouts[stored.key, stored.offset] = layout

            targets.append(Target(key=stored.key, start=stored.offset, nbytes=_HEADER_BYTES, done=keep))
        self._downloader.run(targets)
        return layouts

    def _byte_target(self, read: _Read) -> Target:
        def done(memory: memoryview) -> None:
            self._planner.load_bytes(read.item, io.BytesIO(self._plain(read, memory)))

        return self._item_target(read, done=done)

    def _whole_target(self, read: _Read, target: torch.Tensor) -> Target:
        def convert(memory: memoryview) -> None:
            source = load_item(self._plain(read, memory), key=read.stored.key)
            for dim, (offset, length) in enumerate(zip(read.item.storage_offsets, read.item.lengths, strict=True)):
                source = source.narrow(dim, offset, length)
            with torch.no_grad():
                target.copy_(source)

        return self._item_target(read, convert=convert)

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
        if read.item.type != LoadItemType.BYTE_IO and (chunk := self._chunk(read.item)) is not None:
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
        block_crc32=raw.block_crc32,
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
        block_crc32=(),
        label=read.label,
    )


def _by_stored_item(reads: Iterable[_Read]) -> Iterable[Sequence[_Read]]:
    groups: dict[tuple[str, int], list[_Read]] = {}
    for read in reads:
        groups.setdefault((read.stored.key, read.stored.offset), []).append(read)
    return groups.values()
