"""Reading every stored byte of a checkpoint and comparing it with the checksums that were recorded.

Items are cut into pieces that are read in parallel, in any order, and let go at once; of long items only the first and
last bytes are kept until the item is judged. What does not match is read a second time before it counts as damaged, so
that bytes which changed on the way are not held against the store.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dcp_cloud.checkpoint.entries import Shard
from dcp_cloud.config import TransferConfig
from dcp_cloud.crc32 import combine_crc32, crc32
from dcp_cloud.errors import BucketNotFoundError, NotFoundError, OutOfRangeError
from dcp_cloud.format.intact import PartlyHeld, Run, check_archive
from dcp_cloud.format.layout import BLOCK_BYTES, RawData, StoredItem
from dcp_cloud.format.parse import RawLayout, parse_header
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.events import EventHook

logger = logging.getLogger(__name__)

# Enough for all records that torch writes before and after the tensor's own (768 and 900 bytes at most).
_ENDS_BYTES = 4096
# Pieces that are planned at once: bounds the plan's memory, and is 16 GiB of whole blocks.
_BATCH_PIECES = 4096

ByteStatus: TypeAlias = Literal["verified", "unrecorded", "checksum", "shape", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one item.

    Args:
        shard: The item.
        status: ``verified``; ``unrecorded``: its bytes could be read, but nothing says what they should be;
            ``checksum``: they are not what was saved; ``shape``: they are another tensor's; ``gone``: the object
            vanished or shrank while it was read.
        cause: What is wrong.
    """

    shard: Shard
    status: ByteStatus
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """How an item is cut: a head and a tail that are kept, and blocks between them that are not.

    Args:
        size_bytes: Length of the item.
        head_bytes: Length of the head; the whole item if it is short.
        tail_bytes: Length of the tail.
    """

    size_bytes: int
    head_bytes: int
    tail_bytes: int

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Give start and stop of each piece, in order; none of them is empty."""
        tail_start = self.size_bytes - self.tail_bytes
        if self.head_bytes:
            yield 0, self.head_bytes
        for start in range(self.head_bytes, tail_start, BLOCK_BYTES):
            yield start, min(start + BLOCK_BYTES, tail_start)
        if self.tail_bytes:
            yield tail_start, self.size_bytes


class _ItemCheck:
    """Collects the pieces of one item and judges it when all are in."""

    def __init__(self, shard: Shard, stored: StoredItem) -> None:
        self.shard = shard
        self.key = stored.key
        self._stored = stored
        self._cut = _cut(stored)
        self._pieces = tuple(self._cut.pieces())
        self._crcs = [0] * len(self._pieces)
        self._kept: dict[int, bytes] = {}
        self._missing = len(self._pieces)
        self.verdict = None if self._pieces else _judge(shard, stored, PartlyHeld(head=b""), ())

    @property
    def pieces(self) -> int:
        """Number of pieces to read."""
        return len(self._pieces)

    def targets(self) -> Iterator[Target]:
        """Give what has to be read; each piece is read into a temporary and let go."""
        for index, (start, stop) in enumerate(self._pieces):
            yield Target(
                key=self.key,
                start=self._stored.offset + start,
                nbytes=stop - start,
                convert=functools.partial(self._take, index),
                done=self._count,
                label=self.shard.fqn,
                items=1 if index == 0 else 0,
            )

    def _take(self, index: int, memory: memoryview) -> None:
        """Note a piece, on a worker thread; each has a place of its own."""
        start, stop = self._pieces[index]
        if stop - start == self._stored.size_bytes and self._cut.head_bytes:
            self.verdict = _judge(self.shard, self._stored, PartlyHeld(head=memory), self._raw_of(memory))
            return
        self._crcs[index] = crc32(memory)
        if stop <= self._cut.head_bytes or start >= self._stored.size_bytes - self._cut.tail_bytes:
            self._kept[start] = bytes(memory)

    def _count(self, memory: memoryview) -> None:  # noqa: ARG002 - the bytes were looked at when they came
        """Count a piece, on the calling thread, and judge the item after the last one."""
        self._missing -= 1
        if self._missing or self.verdict is not None:
            return
        head_bytes, tail_start = self._cut.head_bytes, self._stored.size_bytes - self._cut.tail_bytes
        middle = [
            Run(stop - start, crc)
            for (start, stop), crc in zip(self._pieces, self._crcs, strict=True)
            if start >= head_bytes and stop <= tail_start
        ]
        head = self._kept[0] if head_bytes else b""
        tail = self._kept[tail_start] if self._cut.tail_bytes else b""
        self.verdict = _judge(self.shard, self._stored, PartlyHeld(head=head, middle=middle, tail=tail), middle)
        self._kept.clear()

    def _raw_of(self, memory: memoryview) -> tuple[Run, ...]:
        raw = self._stored.raw
        if raw is None:
            return ()
        start = raw.offset - self._stored.offset
        return (Run(raw.size_bytes, crc32(memory[start : start + raw.size_bytes])),)


def _cut(stored: StoredItem) -> _Cut:
    size_bytes, raw = stored.size_bytes, stored.raw
    if size_bytes <= BLOCK_BYTES:
        return _Cut(size_bytes=size_bytes, head_bytes=size_bytes, tail_bytes=0)
    if raw is None:
        if stored.crc32 is not None:
            return _Cut(size_bytes=size_bytes, head_bytes=0, tail_bytes=0)
        return _Cut(size_bytes=size_bytes, head_bytes=_ENDS_BYTES, tail_bytes=_ENDS_BYTES)
    head_bytes = raw.offset - stored.offset
    return _Cut(size_bytes=size_bytes, head_bytes=head_bytes, tail_bytes=size_bytes - head_bytes - raw.size_bytes)


def _judge(shard: Shard, stored: StoredItem, item: PartlyHeld, raw_blocks: Sequence[Run]) -> Verdict:
    """Judge an item.

    Args:
        shard: The item.
        stored: Where it is, and its recorded checksums.
        item: Its bytes, as far as they are held.
        raw_blocks: Checksums of the blocks of its tensor's bare bytes, if ``stored.raw`` says where those are.
    """
    fault = _raw_fault(stored.raw, raw_blocks) if stored.raw is not None else ""
    if not fault and stored.crc32 is not None:
        fault = _crc_fault("the item", item.crc32(0, stored.size_bytes), stored.crc32)
    if fault:
        return Verdict(shard=shard, status="checksum", cause=fault)
    if stored.crc32 is not None and stored.raw is None:
        return Verdict(shard=shard, status="verified")
    if stored.transforms:
        return Verdict(shard=shard, status="unrecorded")
    finding = check_archive(item)
    if finding.status == "damaged":
        return Verdict(shard=shard, status="checksum", cause=finding.cause)
    fault = _shape_fault(shard, item, stored.size_bytes)
    if fault:
        return Verdict(shard=shard, status="shape", cause=fault)
    is_proved = finding.status == "intact" or (stored.raw is not None and stored.raw.crc32 is not None)
    return Verdict(shard=shard, status="verified" if is_proved else "unrecorded")


def _raw_fault(raw: RawData, blocks: Sequence[Run]) -> str:
    """Compare a tensor's bare bytes with the checksums that this package recorded of them."""
    if raw.crc32 is None:
        return ""
    whole = PartlyHeld(head=b"", middle=blocks).crc32(0, raw.size_bytes)
    fault = _crc_fault("the tensor's bytes", whole, raw.crc32)
    if not fault or not raw.page_crc32 or BLOCK_BYTES % raw.page_bytes:
        return fault
    start = 0
    for block in blocks:  # say where
        recorded = 0
        for at in range(start, start + block.nbytes, raw.page_bytes):
            nbytes = min(raw.page_bytes, raw.size_bytes - at)
            recorded = combine_crc32(recorded, raw.page_crc32[at // raw.page_bytes], nbytes)
        if block.crc32 != recorded and len(blocks) > 1:
            return _crc_fault(f"bytes {start} to {start + block.nbytes} of the tensor", block.crc32, recorded)
        start += block.nbytes
    return fault


def _crc_fault(what: str, crc: int | None, recorded: int) -> str:
    if crc is None:
        return f"CRC-32 of {what} cannot be computed"
    return "" if crc == recorded else f"CRC-32 of {what} is {crc:08x}, {recorded:08x} was recorded"


def _shape_fault(shard: Shard, item: PartlyHeld, size_bytes: int) -> str:
    """Compare the tensor that the item says it holds with the chunk that the commit says it is."""
    layout = parse_header(bytes(item.head[:_ENDS_BYTES]), item_nbytes=size_bytes)
    if not shard.is_tensor or not isinstance(layout, RawLayout) or layout.shape == shard.sizes:
        return ""
    return f"it holds a tensor of shape {list(layout.shape)}, the commit says {list(shard.sizes)}"


class ByteChecker:
    """Checks the bytes of items.

    Args:
        store: Store rooted at the checkpoint.
        transfer: Concurrency, memory, retries.
        hook: Told of requests and progress.
    """

    def __init__(self, store: ObjectStore, transfer: TransferConfig, hook: EventHook) -> None:
        self._downloader = Downloader(store, transfer, hook=hook, phase="verify")
        self._gone: dict[str, str] = {}

    def check(self, shards: Iterable[Shard]) -> Iterator[Verdict]:
        """Read items and judge them.

        Args:
            shards: Items that are stored, within the objects that were listed.

        Yields:
            One verdict for each item, damaged ones last.

        Raises:
            StoreError: The store refused, or stopped to answer.
        """
        suspects: list[Shard] = []
        for batch in _batches(shards):
            for verdict in self._read(batch):
                if verdict.status in ("checksum", "shape"):
                    logger.info("%s does not match, reading it once more", verdict.shard.fqn)
                    suspects.append(verdict.shard)
                else:
                    yield verdict
        for batch in _batches(suspects):
            yield from self._read(batch)

    def _read(self, checks: Sequence[_ItemCheck]) -> list[Verdict]:
        waiting = [check for check in checks if check.verdict is None and check.key not in self._gone]
        while waiting:
            try:
                self._downloader.run([target for check in waiting for target in check.targets()])
            except BucketNotFoundError:
                raise
            except (NotFoundError, OutOfRangeError) as error:
                gone = {check.key for check in waiting if _is_about(error.key, check.key)}
                if not gone:
                    raise
                self._gone.update(dict.fromkeys(gone, str(error)))
                # Begin the others anew: a failed transfer leaves their pieces undefined.
                checks = [check if check.verdict else _check_of(check.shard) for check in checks]
            waiting = [check for check in checks if check.verdict is None and check.key not in self._gone]
        return [
            check.verdict or Verdict(shard=check.shard, status="gone", cause=self._gone[check.key]) for check in checks
        ]


def _check_of(shard: Shard) -> _ItemCheck:
    assert shard.stored is not None  # noqa: S101 - only stored items are checked
    return _ItemCheck(shard, shard.stored)


def _batches(shards: Iterable[Shard]) -> Iterator[list[_ItemCheck]]:
    batch: list[_ItemCheck] = []
    pieces = 0
    for shard in shards:
        check = _check_of(shard)
        if batch and pieces + check.pieces > _BATCH_PIECES:
            yield batch
            batch, pieces = [], 0
        batch.append(check)
        pieces += check.pieces
    if batch:
        yield batch


def _is_about(named: str | None, key: str) -> bool:
    """Tell whether an error names an object; stores below a prefix name it by its full key."""
    return named is not None and (named == key or named.endswith(f"/{key}"))
