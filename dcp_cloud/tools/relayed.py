"""Objects of a checkpoint on their way through this machine: read, sent, and compared with what was recorded of them.

Bytes pass through memory once: read in parallel ranges, sent in parallel parts. Their checksums, which are computed for
the parts anyway, are combined and compared with those that were recorded when they were saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from dcp_cloud.checkpoint.entries import CheckpointContents, Shard
from dcp_cloud.checkpoint.location import Location
from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.transfer.ranges import upload_part_bytes
from dcp_cloud.transfer.relay import relay_spans
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.span import Span, crc32_of
from dcp_cloud.transfer.upload import Uploader

# A batch is compared when all of it is stored. Enough bytes to keep all connections busy, and not so many items that
# the checksums of their spans (two and about 0.5 KiB for each) are memory to speak of.
_BATCH_BYTES = 2 * 1024**3
_BATCH_OBJECTS = 256
_BATCH_ITEMS = 20_000


def items_by_key(contents: CheckpointContents) -> dict[str, list[Shard]]:
    """Group what is in a checkpoint by the objects that hold it.

    Args:
        contents: What is in the checkpoint.

    Returns:
        Key of the object to the items in it.
    """
    items: dict[str, list[Shard]] = {}
    for shard in contents.shards():
        if shard.stored is not None:
            items.setdefault(shard.stored.key, []).append(shard)
    return items


def relay_objects(
    source: Location,
    target: Location,
    metas: Iterable[ObjectMeta],
    items: Mapping[str, Sequence[Shard]],
    *,
    hook: EventHook,
) -> int:
    """Read objects and send them, and compare what went through with the recorded checksums.

    Args:
        source: Where they are.
        target: Where they go, under the same keys.
        metas: The objects.
        items: What is in them, by key.
        hook: Told of requests and progress.

    Returns:
        Number of items that were compared.

    Raises:
        CorruptCheckpointError: Bytes are not those that were saved. These objects were deleted at the target.
        StoreError: A store refused.
    """
    return sum(_relay(source, target, batch, items, hook) for batch in _batches(metas, items))


def damaged_source(source: Location, cause: str, key: str) -> CorruptCheckpointError:
    """Make the error for a checkpoint that is not fit to be copied.

    Args:
        source: The checkpoint.
        cause: What is wrong.
        key: The object that it concerns.

    Returns:
        The error.
    """
    return CorruptCheckpointError(
        "the checkpoint to copy is damaged; nothing was committed",
        key=source.uri.locate(key).root,
        cause=cause,
        hint=f"see what else is wrong: dcp-cloud verify {source.uri.root}",
    )


def _relay(
    source: Location,
    target: Location,
    batch: Sequence[ObjectMeta],
    items: Mapping[str, Sequence[Shard]],
    hook: EventHook,
) -> int:
    spans: dict[str, list[Span]] = {}
    with Uploader(target.store, target.transfer, hook=hook, phase="copy") as uploader:
        # Reading ends with the upload: a Ctrl-C does not wait for its repetitions.
        retrier = replace(uploader.store.retrier, config=source.transfer.retry, pace=None)
        origin = RetryingStore(source.store, retrier)
        for meta in batch:
            # Another copy of the same checkpoint may have stored this very object, and committed.
            upload = uploader.begin(meta.key, expected_bytes=meta.size_bytes, replaces=True)
            part_bytes = upload_part_bytes(
                meta.size_bytes, part_size_bytes=target.transfer.part_size_bytes, limits=target.store.limits
            )
            cuts = [cut for shard in items.get(meta.key, ()) for cut in _recorded(shard)[:2]]
            spans[meta.key] = []
            for span in relay_spans(origin, meta, part_bytes=part_bytes, cuts=cuts):
                spans[meta.key].append(span)
                upload.append(span)
            upload.end()
        uploader.finish()
    verified = 0
    wrong: list[tuple[str, str]] = []
    for meta in batch:
        for fqn, is_right in _compare(spans.pop(meta.key), items.get(meta.key, ())):
            verified += 1
            if not is_right:
                wrong.append((meta.key, fqn))
    if wrong:
        plain = RetryingStore(target.store, Retrier(config=target.transfer.retry, hook=hook))
        plain.delete(sorted({key for key, _ in wrong}))
        key, fqn = wrong[0]
        raise damaged_source(source, f"the bytes of {fqn!r} are not those that were saved", key)
    return verified


def _compare(spans: Sequence[Span], shards: Iterable[Shard]) -> Iterator[tuple[str, bool]]:
    """Tell of each item with a recorded checksum whether its bytes have it."""
    ends = itertools.accumulate((span.nbytes for span in spans), initial=0)
    starts = {start: index for index, start in enumerate(ends)}
    for shard in shards:
        start, stop, crc32 = _recorded(shard)
        if crc32 is not None:
            is_there = start in starts and stop in starts
            yield shard.fqn, is_there and crc32_of(spans[starts[start] : starts[stop]]) == crc32


def _recorded(shard: Shard) -> tuple[int, int, int | None]:
    """Give start and stop of the bytes of an item whose checksum was recorded, and the checksum."""
    stored = shard.stored
    if stored is None:
        return 0, 0, None
    if stored.raw is not None:
        return stored.raw.offset, stored.raw.offset + stored.raw.size_bytes, stored.raw.crc32
    return stored.offset, stored.offset + stored.size_bytes, stored.crc32


def _batches(metas: Iterable[ObjectMeta], items: Mapping[str, Sequence[Shard]]) -> Iterator[list[ObjectMeta]]:
    batch: list[ObjectMeta] = []
    nbytes = nitems = 0
    for meta in metas:
        own = len(items.get(meta.key, ()))
        is_full = nbytes + meta.size_bytes > _BATCH_BYTES or nitems + own > _BATCH_ITEMS
        if batch and (is_full or len(batch) == _BATCH_OBJECTS):
            yield batch
            batch, nbytes, nitems = [], 0, 0
        batch.append(meta)
        nbytes, nitems = nbytes + meta.size_bytes, nitems + own
    if batch:
        yield batch
