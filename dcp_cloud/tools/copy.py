"""Copying a checkpoint between any two stores, so that the copy is whole or not there.

The data objects go first, then everything is checked, then the commit. Bytes pass through memory once: read in parallel
ranges, sent in parallel parts, and their checksums are compared with those that were recorded when they were saved.
Where one provider holds both ends it can move the bytes itself. A copy that broke off goes on where it stopped: what is
there under a name with the save's id and in full length is there, because objects appear whole or not at all.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dcp_cloud.checkpoint.bytecheck import ByteChecker
from dcp_cloud.checkpoint.catalog import list_checkpoints
from dcp_cloud.checkpoint.cleanup import split_key
from dcp_cloud.checkpoint.commit import Before, commit, delete_replaced, load_replaced
from dcp_cloud.checkpoint.contents import read_contents
from dcp_cloud.checkpoint.entries import CheckpointContents, Shard
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.checkpoint.location import Location
from dcp_cloud.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    NotFoundError,
)
from dcp_cloud.format.layout import is_data_key
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.stores.server_side import copier_between
from dcp_cloud.transfer.events import EventHook, Planned, Progressed, ignore_event
from dcp_cloud.transfer.ranges import upload_part_bytes
from dcp_cloud.transfer.relay import relay_spans
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.span import Span, crc32_of
from dcp_cloud.transfer.upload import Uploader
from dcp_cloud.transfer.workers import WorkerPool

logger = logging.getLogger(__name__)

# A batch is stored whole or not at all: what a broken copy loses at most, and enough to keep all connections busy.
_BATCH_BYTES = 2 * 1024**3
_BATCH_OBJECTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy did.

    Args:
        source: The checkpoint that was copied, without options.
        target: Where it is now, without options.
        was_there: Whether the very same checkpoint was there already; then nothing was sent.
        objects: Number of its data objects.
        size_bytes: Their length.
        relayed: Objects that went through this machine.
        server_side: Objects that the provider copied.
        resumed: Objects that an earlier, broken copy had stored.
        verified_items: Items whose bytes were compared with the checksum recorded at their save.
        items: Number of items.
        duration_s: How long it took, seconds.
    """

    source: str
    target: str
    was_there: bool
    objects: int
    size_bytes: int
    relayed: int = 0
    server_side: int = 0
    resumed: int = 0
    verified_items: int = 0
    items: int = 0
    duration_s: float = 0.0


def copy_checkpoint(
    source: Location,
    target: Location,
    *,
    overwrite: bool = False,
    server_side: bool = True,
    read_back: bool = False,
    hook: EventHook = ignore_event,
) -> CopyReport:
    """Copy one checkpoint.

    Args:
        source: Where it is.
        target: Where to; its settings decide part length, concurrency and memory.
        overwrite: Whether another checkpoint there may be replaced. It stays whole until the copy is committed.
        server_side: Let the provider copy where it holds both ends.
        read_back: Read every byte of the copy and verify it before it is committed.
        hook: Told of requests and progress.

    Returns:
        What was done.

    Raises:
        CheckpointNotFoundError: There is no checkpoint at the source.
        CorruptCheckpointError: The source is damaged; nothing was committed.
        CheckpointExistsError: Another checkpoint is at the target, or its objects have the names of these.
        CommitConflictError: Somebody committed at the target meanwhile.
        StoreError: A store refused.
    """
    return _Copy(source, target, overwrite=overwrite, hook=hook).run(server_side=server_side, read_back=read_back)


def copy_tree(
    source: Location, target: Location, *, hook: EventHook = ignore_event, **options: bool
) -> list[CopyReport]:
    """Copy every committed checkpoint at and below a prefix, under the same names.

    Args:
        source: The prefix.
        target: The prefix below which they go.
        hook: Told of requests and progress.
        **options: As for :func:`copy_checkpoint`.

    Returns:
        A report for each, in the order of steps.

    Raises:
        CheckpointNotFoundError: There is no committed checkpoint.
        DcpCloudError: As for :func:`copy_checkpoint`; those before it were copied.
    """
    found = [entry for entry in list_checkpoints(source.store, transfer=source.transfer) if entry.state != "incomplete"]
    if not found:
        raise CheckpointNotFoundError(
            "there is no committed checkpoint here", key=source.uri.root, hint="'dcp-cloud ls' lists what there is"
        )
    return [
        copy_checkpoint(_below(source, entry.path), _below(target, entry.path), hook=hook, **options) for entry in found
    ]


def _below(location: Location, path: str) -> Location:
    uri = location.uri.child(path) if path else location.uri
    return Location(uri, transfer=location.transfer, store=None, config=None, schemes=None)


class _Copy:
    """One copy under way."""

    def __init__(self, source: Location, target: Location, *, overwrite: bool, hook: EventHook) -> None:
        if source.uri.root == target.uri.root:
            raise ConfigError("source and target are the same place", key=source.uri.root, hint="name another target")
        self._source = source
        self._target = target
        self._overwrite = overwrite
        self._hook = hook
        self._from = _retrying(source, hook)
        self._to = _retrying(target, hook)
        self._verified = 0

    def run(self, *, server_side: bool, read_back: bool) -> CopyReport:
        began_s = time.monotonic()
        contents = read_contents(self._source.store, transfer=self._source.transfer, hook=self._hook)
        commits = {key: read_object(self._source.store, key, self._source.transfer)[0] for key in contents.commits}
        metas = self._source_objects(contents)
        report = CopyReport(
            source=self._source.uri.root,
            target=self._target.uri.root,
            was_there=False,
            objects=len(metas),
            size_bytes=sum(meta.size_bytes for meta in metas),
            items=sum(1 for _ in contents.shards()),
        )
        befores = {key: self._look(key, memory) for key, memory in commits.items()}
        if all(before is None for before in befores.values()):
            return replace(report, was_there=True, duration_s=time.monotonic() - began_s)
        there = {meta.key: meta.size_bytes for meta in self._to.list()}
        self._check_names(metas, there, has_commit=any(split_key(key)[1] in commits for key in there))
        resumed = [meta for meta in metas if is_data_key(meta.key) and there.get(meta.key) == meta.size_bytes]
        missing = [meta for meta in metas if meta not in resumed]
        self._hook(Planned(phase="copy", size_bytes=sum(meta.size_bytes for meta in missing), items=len(missing)))
        items = _items_by_key(contents)
        copied = self._copy_server_side(missing) if server_side else []
        relayed = [meta for meta in missing if meta not in copied]
        for batch in _batches(relayed):
            self._relay(batch, items)
        # Whatever did not pass through this machine's memory was not compared with its checksums yet.
        unseen = metas if read_back else resumed
        self._check_bytes([shard for meta in unseen for shard in items.get(meta.key, ())])
        self._check_lengths(metas)
        for key, memory in commits.items():
            self._commit(key, memory, befores[key])
        return replace(
            report,
            relayed=len(relayed),
            server_side=len(copied),
            resumed=len(resumed),
            verified_items=self._verified,
            duration_s=time.monotonic() - began_s,
        )

    def _source_objects(self, contents: CheckpointContents) -> list[ObjectMeta]:
        if contents.damage:
            raise _damaged(self._source, contents.damage[0].cause, contents.damage[0].key)
        listed = {meta.key: meta for meta in self._from.list()}
        for entry in contents.objects:
            if entry.key not in listed:
                raise _damaged(self._source, "the object is missing", entry.key)
        return [listed[entry.key] for entry in contents.objects]

    def _look(self, key: str, memory: memoryview) -> Before | None:
        """See what stands in the place of a commit; None if it is this very commit."""
        try:
            found, etag = read_object(self._target.store, key, self._target.transfer)
        except NotFoundError:
            return Before(key=key, etag=None)
        if found == memory:
            return None
        if not self._overwrite:
            raise CheckpointExistsError(
                "another checkpoint is committed at the target",
                key=self._target.uri.root,
                hint="choose another place, or replace it with --overwrite (overwrite=True)",
            )
        return Before(key=key, etag=etag)

    def _check_names(self, metas: Iterable[ObjectMeta], there: Mapping[str, int], *, has_commit: bool) -> None:
        """Refuse to write over objects that a checkpoint at the target may need until it is replaced."""
        taken = [meta.key for meta in metas if has_commit and not is_data_key(meta.key) and meta.key in there]
        if taken:
            raise CheckpointExistsError(
                "the checkpoint at the target has objects of the same names",
                key=self._target.uri.locate(taken[0]).root,
                cause="their writer gave them no name of their own, so replacing them would break it",
                hint="choose another place, or remove it first: dcp-cloud rm",
            )

    def _copy_server_side(self, metas: Sequence[ObjectMeta]) -> list[ObjectMeta]:
        """Let the provider copy; gives those that it did copy."""
        copy = copier_between(self._source.store, self._target.store)
        copied: list[ObjectMeta] = []
        if copy is None or not metas:
            return copied
        retry = self._target.transfer.retry
        with WorkerPool(self._target.transfer.max_concurrency, queue_limit=len(metas), name="dcp_cloud-copy") as pool:
            retrier = Retrier(config=retry, hook=self._hook, cancelled=pool.cancelled)

            def one(meta: ObjectMeta) -> None:
                if retrier.call(lambda: copy(meta.key, meta), verb="copy", key=meta.key):
                    copied.append(meta)
                    self._hook(Progressed(phase="copy", size_bytes=meta.size_bytes, items=1))

            for meta in metas:
                pool.submit(lambda meta=meta: one(meta))  # type: ignore[misc]  # the default binds the loop's value
            pool.join()
        return copied

    def _relay(self, batch: Sequence[ObjectMeta], items: Mapping[str, Sequence[Shard]]) -> None:
        """Send a batch of objects through this machine, and compare what went through with the recorded checksums."""
        spans: dict[str, list[Span]] = {}
        with Uploader(self._target.store, self._target.transfer, hook=self._hook, phase="copy") as uploader:
            for meta in batch:
                upload = uploader.begin(meta.key, expected_bytes=meta.size_bytes)
                part_bytes = upload_part_bytes(
                    meta.size_bytes,
                    part_size_bytes=self._target.transfer.part_size_bytes,
                    limits=self._target.store.limits,
                )
                cuts = [cut for shard in items.get(meta.key, ()) for cut in _recorded(shard)[:2]]
                spans[meta.key] = []
                for span in relay_spans(self._from, meta, part_bytes=part_bytes, cuts=cuts):
                    spans[meta.key].append(span)
                    upload.append(span)
                upload.end()
            uploader.finish()
            # Within the block: if anything is wrong the batch is not kept.
            for meta in batch:
                self._compare(meta, spans[meta.key], items.get(meta.key, ()))

    def _compare(self, meta: ObjectMeta, spans: Sequence[Span], shards: Iterable[Shard]) -> None:
        starts = {
            start: index for index, start in enumerate(itertools.accumulate((s.nbytes for s in spans), initial=0))
        }
        for shard in shards:
            start, stop, crc32 = _recorded(shard)
            if crc32 is None:
                continue
            if start not in starts or stop not in starts or crc32_of(spans[starts[start] : starts[stop]]) != crc32:
                raise _damaged(self._source, f"the bytes of {shard.fqn!r} are not those that were saved", meta.key)
            self._verified += 1

    def _check_bytes(self, shards: Sequence[Shard]) -> None:
        checker = ByteChecker(self._target.store, self._target.transfer, self._hook)
        for verdict in checker.check(shards):
            if verdict.status not in ("verified", "unrecorded"):
                key = verdict.shard.stored.key if verdict.shard.stored else ""
                raise CorruptCheckpointError(
                    "an object of the copy is damaged; nothing was committed",
                    key=self._target.uri.locate(key).root,
                    cause=f"{verdict.shard.fqn}: {verdict.cause}",
                    hint="delete that object and copy again",
                )
            self._verified += verdict.status == "verified"

    def _check_lengths(self, metas: Iterable[ObjectMeta]) -> None:
        there = {meta.key: meta.size_bytes for meta in self._to.list()}
        for meta in metas:
            if there.get(meta.key) != meta.size_bytes:
                raise IncompleteCheckpointError(
                    "an object of the copy is missing or short; nothing was committed",
                    key=self._target.uri.locate(meta.key).root,
                    hint="somebody may be deleting here; copy again",
                )

    def _commit(self, key: str, memory: memoryview, before: Before | None) -> None:
        if before is None:
            return
        replaced = None
        if before.etag is not None:
            replaced = load_replaced(lambda name: read_object(self._target.store, name, self._target.transfer), key)
        commit(self._to, bytes(memory), before, overwrite=self._overwrite)
        logger.info("committed %s", self._target.uri.locate(key).root)
        if replaced is not None:
            delete_replaced(self._to, replaced, load_metadata(memory, key=key))


def _recorded(shard: Shard) -> tuple[int, int, int | None]:
    """Give start and stop of the bytes of an item whose checksum was recorded, and the checksum."""
    stored = shard.stored
    if stored is None:
        return 0, 0, None
    if stored.raw is not None:
        return stored.raw.offset, stored.raw.offset + stored.raw.size_bytes, stored.raw.crc32
    return stored.offset, stored.offset + stored.size_bytes, stored.crc32


def _items_by_key(contents: CheckpointContents) -> dict[str, list[Shard]]:
    items: dict[str, list[Shard]] = {}
    for shard in contents.shards():
        if shard.stored is not None:
            items.setdefault(shard.stored.key, []).append(shard)
    return items


def _batches(metas: Iterable[ObjectMeta]) -> Iterator[list[ObjectMeta]]:
    batch: list[ObjectMeta] = []
    for meta in metas:
        total = sum(one.size_bytes for one in batch) + meta.size_bytes
        if batch and (total > _BATCH_BYTES or len(batch) == _BATCH_OBJECTS):
            yield batch
            batch = []
        batch.append(meta)
    if batch:
        yield batch


def _retrying(location: Location, hook: EventHook) -> RetryingStore:
    return RetryingStore(location.store, Retrier(config=location.transfer.retry, hook=hook))


def _damaged(source: Location, cause: str, key: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "the checkpoint to copy is damaged; nothing was committed",
        key=source.uri.locate(key).root,
        cause=cause,
        hint=f"see what else is wrong: dcp-cloud verify {source.uri.root}",
    )
