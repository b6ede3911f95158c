"""Copying a checkpoint between any two stores, so that the copy is whole or not there.

The data objects go first, then everything is checked, then the commit. Where one provider holds both ends it can move
the bytes itself; otherwise they pass through here (:mod:`dcp_cloud.tools.relayed`). A copy that broke off goes on where
it stopped: what is there under a name with the save's id and in full length is there, because objects appear whole or
not at all. For that reason, and because another copy of the same checkpoint may count on it, a failed copy deletes
nothing that is whole. What has lain there without a commit for half a day is sent again all the same, and so is young
again: a sweep may otherwise take it for a leftover before the copy is committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TypeVar

from dcp_cloud.checkpoint.bytecheck import ByteChecker
from dcp_cloud.checkpoint.catalog import list_checkpoints
from dcp_cloud.checkpoint.cleanup import is_commit, split_key
from dcp_cloud.checkpoint.commit import Before, commit, delete_rank_commits, delete_replaced, load_replaced_keys
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
from dcp_cloud.format.layout import METADATA_KEY, is_data_key, rank_of_metadata_key
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.stores.server_side import copier_between
from dcp_cloud.tools.relayed import damaged_source, items_by_key, relay_objects
from dcp_cloud.transfer.events import EventHook, PhaseDone, Planned, Progressed, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.workers import WorkerPool

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

# Half of the age from which on a sweep takes data without a commit for a leftover: the other half is the copy's.
_REUSED_FOR = timedelta(hours=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy did.

    Args:
        source: The checkpoint that was copied, without options.
        target: Where it is now, without options.
        was_there: Whether the very same checkpoint was there already, with all its objects; then nothing was sent.
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
        read_back: Read every byte of the copy and verify it before it is committed; of one that was there, too.
        hook: Told of requests and progress.

    Returns:
        What was done.

    Raises:
        ConfigError: Source and target are the same place, or an object is longer than the target allows.
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
        ConfigError: The target is the source, or below it: the next run would copy the copies.
        CheckpointNotFoundError: There is no committed checkpoint.
        DcpCloudError: As for :func:`copy_checkpoint`; those before it were copied.
    """
    if target.is_at(source) or target.is_below(source):
        raise ConfigError(
            "the target is the source, or below it", key=target.uri.root, hint="name a target beside the source"
        )
    found = [entry for entry in list_checkpoints(source.store, transfer=source.transfer) if entry.state != "incomplete"]
    if not found:
        raise CheckpointNotFoundError(
            "there is no committed checkpoint here", key=source.uri.root, hint="'dcp-cloud ls' lists what there is"
        )
    return [
        copy_checkpoint(_below(source, entry.path), _below(target, entry.path), hook=hook, **options) for entry in found
    ]


def _below(location: Location, path: str) -> Location:
    """Give a place below another, reached through the same client."""
    if not path:
        return location
    store = PrefixStore(location.store, path)
    return Location(location.uri.child(path), transfer=location.transfer, store=store, config=None, schemes=None)


class _Copy:
    """One copy under way."""

    def __init__(self, source: Location, target: Location, *, overwrite: bool, hook: EventHook) -> None:
        if source.is_at(target):
            raise ConfigError("source and target are the same place", key=source.uri.root, hint="name another target")
        self._source = source
        self._target = target
        self._overwrite = overwrite
        self._hook = hook
        self._from = _retrying(source, hook)
        self._to = _retrying(target, hook)

    def run(self, *, server_side: bool, read_back: bool) -> CopyReport:
        began_s = time.monotonic()
        error: BaseException | None = None
        try:
            report = self._run(server_side=server_side, read_back=read_back)
            return replace(report, duration_s=time.monotonic() - began_s)
        except BaseException as raised:
            error = raised
            raise
        finally:
            cause = type(error).__name__ if error is not None else None
            self._hook(PhaseDone(phase="copy", duration_s=time.monotonic() - began_s, error=cause))

    def _run(self, *, server_side: bool, read_back: bool) -> CopyReport:
        contents = read_contents(self._source.store, transfer=self._source.transfer, hook=self._hook)
        commits = {key: read_object(self._source.store, key, self._source.transfer)[0] for key in contents.commits}
        items = items_by_key(contents)
        metas = self._source_objects(contents, items)
        report = CopyReport(
            source=self._source.uri.root,
            target=self._target.uri.root,
            was_there=False,
            objects=len(metas),
            size_bytes=sum(meta.size_bytes for meta in metas),
            items=sum(1 for _ in contents.shards()),
        )
        self._check_limits(metas)
        befores = {key: self._look(key, memory) for key, memory in commits.items()}
        listed = {meta.key: meta for meta in self._to.list()}
        there = {key: meta.size_bytes for key, meta in listed.items()}
        self._check_kinds(commits, there)
        whole = {meta.key for meta in metas if there.get(meta.key) == meta.size_bytes}
        if len(whole) == len(metas) and not any(befores.values()):
            verified = self._check_bytes(metas, items) if read_back else 0
            return replace(report, was_there=True, verified_items=verified)
        self._check_names(metas, there, has_commit=any(split_key(key)[1] in commits for key in there))
        kept = {key for key in whole if is_data_key(key) and not (all(befores.values()) and _is_old(listed[key]))}
        resumed = [meta for meta in metas if meta.key in kept]
        missing = [meta for meta in metas if meta.key not in kept]
        self._hook(Planned(phase="copy", size_bytes=sum(meta.size_bytes for meta in missing), items=len(missing)))
        copied = self._copy_server_side(missing) if server_side else set()
        relayed = [meta for meta in missing if meta.key not in copied]
        verified = relay_objects(self._source, self._target, relayed, items, hook=self._hook)
        if read_back:
            verified = self._check_bytes(metas, items)
        else:
            # What an earlier try stored did not pass through this machine's memory now.
            verified += self._check_bytes(resumed, items)
        self._check_lengths(metas)
        for key, memory in commits.items():
            self._commit(key, memory, befores[key])
        self._retire_ranks(commits, there)
        return replace(
            report,
            relayed=len(relayed),
            server_side=len(copied),
            resumed=len(resumed),
            verified_items=verified,
        )

    def _source_objects(self, contents: CheckpointContents, items: Mapping[str, Sequence[Shard]]) -> list[ObjectMeta]:
        if contents.damage:
            raise damaged_source(self._source, contents.damage[0].cause, contents.damage[0].key)
        listed = {meta.key: meta for meta in self._from.list()}
        for key, shards in items.items():
            # As data, it would be written before the commit, and be one.
            if is_commit(split_key(key)[1]):
                raise damaged_source(self._source, "the commit names a commit as its data", key)
            if key not in listed:
                raise damaged_source(self._source, "the object is missing", key)
            needed_bytes = max(one.stored.offset + one.stored.size_bytes for one in shards if one.stored is not None)
            if listed[key].size_bytes < needed_bytes:
                cause = f"the object has {listed[key].size_bytes} bytes, its items need {needed_bytes}"
                raise damaged_source(self._source, cause, key)
        return [listed[entry.key] for entry in contents.objects]

    def _check_limits(self, metas: Iterable[ObjectMeta]) -> None:
        """Refuse before terabytes are sent what the target cannot hold."""
        most = self._to.limits.max_object_bytes
        for meta in metas:
            if meta.size_bytes > most:
                raise ConfigError(
                    f"an object of {meta.size_bytes} bytes is too long for the target, which takes {most}",
                    key=self._source.uri.locate(meta.key).root,
                    hint="load it and save it there: a save begins another object in time",
                )

    def _check_kinds(self, commits: Mapping[str, memoryview], there: Mapping[str, int]) -> None:
        """Refuse to mix one commit of all ranks with commits of single ranks."""
        others = sorted(key for key in there if is_commit(key) and key not in commits)
        if METADATA_KEY in others or (others and not self._overwrite):
            raise CheckpointExistsError(
                "another checkpoint is committed at the target",
                key=self._target.uri.locate(others[0]).root,
                cause="one of the two was saved with collectives, or by more ranks than the other",
                hint="choose another place, or remove it first: dcp-cloud rm",
            )

    def _retire_ranks(self, commits: Mapping[str, memoryview], there: Mapping[str, int]) -> None:
        """Delete the commits of ranks that the copy has replaced and has none of its own for."""
        if not any(is_commit(key) and key not in commits for key in there):
            return
        key, memory = max(commits.items(), key=lambda commit: rank_of_metadata_key(commit[0]) or 0)
        rank = rank_of_metadata_key(key)
        delete_rank_commits(
            self._to, self._read_target, load_metadata(memory, key=key), from_rank=0 if rank is None else rank + 1
        )

    def _read_target(self, key: str) -> tuple[memoryview, str]:
        return read_object(self._target.store, key, self._target.transfer)

    def _look(self, key: str, memory: memoryview) -> Before | None:
        """See what stands in the place of a commit; None if it is this very commit."""
        try:
            found, etag = self._read_target(key)
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

    def _copy_server_side(self, metas: Sequence[ObjectMeta]) -> set[str]:
        """Let the provider copy; gives the keys of those that it did copy."""
        copy = copier_between(self._source.store, self._target.store)
        copied: set[str] = set()
        if copy is None or not metas:
            return copied
        transfer = self._target.transfer
        with WorkerPool(transfer.max_concurrency, queue_limit=transfer.max_concurrency, name="dcp_cloud-copy") as pool:
            retrier = Retrier(config=transfer.retry, hook=self._hook, cancelled=pool.cancelled)

            def one(meta: ObjectMeta) -> None:
                def repeat(request: Callable[[], ResultT]) -> ResultT:
                    return retrier.call(request, verb="copy", key=meta.key)

                if copy(meta.key, meta, repeat):
                    copied.add(meta.key)
                    self._hook(Progressed(phase="copy", size_bytes=meta.size_bytes, items=1))

            for meta in metas:
                pool.submit(lambda meta=meta: one(meta))  # type: ignore[misc]  # the default binds the loop's value
            pool.join()
        return copied

    def _check_bytes(self, metas: Iterable[ObjectMeta], items: Mapping[str, Sequence[Shard]]) -> int:
        """Read objects of the copy, and count the items that have their recorded checksums."""
        checker = ByteChecker(self._target.store, self._target.transfer, self._hook)
        verified = 0
        shards = [shard for meta in metas for shard in items.get(meta.key, ())]
        size_bytes = sum(shard.stored.size_bytes for shard in shards if shard.stored is not None)
        self._hook(Planned(phase="verify", size_bytes=size_bytes, items=len(shards)))
        for verdict in checker.check(shards):
            if verdict.status not in ("verified", "unrecorded"):
                key = verdict.shard.stored.key if verdict.shard.stored else ""
                raise CorruptCheckpointError(
                    "an object of the copy is damaged",
                    key=self._target.uri.locate(key).root,
                    cause=f"{verdict.shard.fqn}: {verdict.cause}",
                    hint="delete that object and copy again",
                )
            verified += verdict.status == "verified"
        return verified

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
        replaced_keys = load_replaced_keys(self._read_target, key) if before.etag is not None else ()
        commit(self._to, bytes(memory), before, overwrite=self._overwrite)
        logger.info("committed %s", self._target.uri.locate(key).root)
        if replaced_keys:
            delete_replaced(self._to, replaced_keys, load_metadata(memory, key=key))


def _is_old(meta: ObjectMeta) -> bool:
    return meta.modified_at is not None and datetime.now(timezone.utc) - meta.modified_at > _REUSED_FOR


def _retrying(location: Location, hook: EventHook) -> RetryingStore:
    return RetryingStore(location.store, Retrier(config=location.transfer.retry, hook=hook))
