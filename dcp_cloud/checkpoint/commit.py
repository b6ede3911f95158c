"""The commit: one atomic conditional ``put`` of ``.metadata``, and what surrounds it.

Before it nothing of a save can be seen; after it all of it can. The condition is what stood there when the save began,
so of two jobs on one prefix exactly one commits and the other gets an error; there is no mixture. Objects that only
the replaced ``.metadata`` named are deleted after the commit; nothing else ever is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from dcp_cloud.checkpoint.cleanup import delete_version
from dcp_cloud.errors import (
    AlreadyExistsError,
    CheckpointError,
    CheckpointExistsError,
    CommitConflictError,
    DcpCloudError,
    IncompleteCheckpointError,
    NotFoundError,
    PreconditionError,
    TransferCancelledError,
)
from dcp_cloud.format.layout import DATA_SUFFIX, from_storage_info, metadata_key, rank_of_metadata_key
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectStore
from dcp_cloud.transfer.together import together

logger = logging.getLogger(__name__)
ReadObject: TypeAlias = Callable[[str], tuple[memoryview, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What stood at the place of the commit when the save began.

    Args:
        key: Key of the commit object.
        etag: Its version, or None if there was none.
        has_rank_commits: Whether a save without collectives was committed here.
    """

    key: str
    etag: str | None
    has_rank_commits: bool = False


def look_before(store: ObjectStore, *, rank: int | None, overwrite: bool) -> Before:
    """See what a save would replace, and refuse if it may not.

    Args:
        store: Store rooted at the checkpoint's prefix.
        rank: Rank of a save without collectives; None for a save that commits once for all ranks.
        overwrite: Whether a checkpoint may be replaced.

    Returns:
        What stands there now; the commit is conditional on it.

    Raises:
        CheckpointExistsError: A checkpoint is here and may not be replaced, or it is of the other kind.
    """
    keys = (metadata_key(rank), metadata_key(None if rank is not None else 0))
    etag, other = together([lambda key=key: _etag(store, key) for key in keys])  # type: ignore[misc]
    if (etag is not None or other is not None) and not overwrite:
        raise CheckpointExistsError(
            "a checkpoint is already committed here and overwrite=False",
            key=store.uri,
            hint="save to another prefix, or pass overwrite=True",
        )
    if rank is not None and other is not None:
        # Its .metadata would win over the ranks' own on load, and removing it now would lose it before we commit.
        raise CheckpointExistsError(
            "a checkpoint saved with collectives is committed here; one without cannot replace it",
            key=store.uri,
            hint="save to another prefix, or remove the checkpoint first: dcp-cloud rm",
        )
    return Before(key=metadata_key(rank), etag=etag, has_rank_commits=rank is None and other is not None)


def check_complete(metadata: Metadata, results: Iterable[Iterable[WriteResult]], *, where: str) -> dict[Any, Any]:
    """Collect the storage records of all results, and see that nothing that was planned is missing.

    Args:
        metadata: The global metadata of the plan.
        results: Results of all ranks.
        where: URI of the checkpoint, for the message.

    Returns:
        ``storage_data``: index to storage record.

    Raises:
        IncompleteCheckpointError: A tensor chunk or a byte item of the plan has no result.
    """
    storage_data = {result.index: result.storage_data for rank_results in results for result in rank_results}
    missing = [index for index in _planned(metadata) if index not in storage_data]
    if missing:
        names = ", ".join(f"{index.fqn}{list(index.offset) if index.offset else ''}" for index in missing[:3])
        raise IncompleteCheckpointError(
            f"{len(missing)} planned items were not stored, so nothing was committed",
            key=where,
            cause=f"no result for {names}{' …' if len(missing) > 3 else ''}",
            hint="look for an error on the ranks that hold them; a custom planner may have dropped them",
        )
    return storage_data


def commit(store: ObjectStore, data: bytes, before: Before, *, overwrite: bool) -> None:
    """Make the checkpoint visible.

    Args:
        store: Store rooted at the checkpoint's prefix, with retries.
        data: The bytes of ``.metadata``.
        before: What stood there when the save began.
        overwrite: Whether a checkpoint may be replaced, for the message.

    Raises:
        CheckpointExistsError: Another job committed here since, and ``overwrite=False``.
        CommitConflictError: Another job committed here since.
        TransferCancelledError: It was given up on its way, and may have taken effect.
        StoreError: The store refused, or could not tell who committed.
    """
    is_ranks_own = rank_of_metadata_key(before.key) is not None
    # A commit of the other kind has another key, so no condition on ours meets it. The save with collectives looks
    # just before its commit, the one without looks just after it and yields. Neither notices only if the latter fits
    # between look and commit of the former.
    if not is_ranks_own and not overwrite and _etag(store, metadata_key(0)) is not None:
        raise _conflict(store, "a rank has committed for itself", overwrite=overwrite)
    condition = IfAbsent() if before.etag is None else IfMatch(before.etag)
    try:
        etag: str | None = store.put(before.key, [memoryview(data)], condition=condition).etag
    except (AlreadyExistsError, PreconditionError) as error:
        # A network may deliver a request twice and hand out the second answer: then what refused us is our own commit.
        # No other save has the same bytes, since the id of the save is among them.
        if not _holds(store, before.key, data):
            raise _conflict(store, error, overwrite=overwrite) from error
        etag = _etag(store, before.key) if is_ranks_own else None
    except TransferCancelledError as error:
        raise TransferCancelledError(
            "the save was cancelled during its commit, and nobody knows whether that took effect",
            key=store.uri,
            cause=error,
            hint="see with 'dcp-cloud ls'; there is a whole checkpoint or none",
        ) from error
    if is_ranks_own and _etag(store, metadata_key()) is not None:
        # On load the other commit wins over those of ranks, so nothing is lost with ours.
        if etag is not None:
            with suppress(PreconditionError):
                delete_version(store, before.key, etag=etag)
        raise _conflict(store, "it was saved with collectives", overwrite=overwrite)


def is_committed(read: ReadObject, key: str, committed: Metadata, *, where: str) -> bool:
    """See whether the commit that stands there is this save's.

    A refusal is believed only after a look: the answer to our own commit may have been lost, and what was read to tell
    it from another job's may have been damaged on the way.

    Args:
        read: Reads an object whole.
        key: Key of the commit object.
        committed: What this save wanted to commit.
        where: URI of the checkpoint, for the message.

    Returns:
        Whether it is.

    Raises:
        CorruptCheckpointError: It cannot be read.
        StoreError: The store refused.
    """
    try:
        found = load_metadata(read(key)[0], key=f"{where}/{key}")
    except NotFoundError:
        return False
    return bool(object_keys(found) & object_keys(committed))


def delete_replaced(store: ObjectStore, replaced_keys: Iterable[str], current: Metadata) -> int:
    """Delete the data objects that only the replaced checkpoint named.

    The commit has been made, so a failure here is logged and leaves orphans for a sweep.

    Args:
        store: Store rooted at the checkpoint's prefix, with retries.
        replaced_keys: The data objects that the replaced checkpoint named.
        current: The metadata that is committed now.

    Returns:
        How many objects were deleted.
    """
    keys = sorted(key for key in set(replaced_keys) - object_keys(current) if _may_delete(key))
    try:
        store.delete(keys)
    except DcpCloudError as error:
        logger.warning("objects of the replaced checkpoint remain; 'dcp-cloud sweep' will delete them: %s", error)
        return 0
    return len(keys)


def delete_rank_commits(store: ObjectStore, read: ReadObject, current: Metadata, *, from_rank: int = 0) -> None:
    """Delete the rank-local commits of an older save, each commit before its data.

    Args:
        store: Store rooted at the checkpoint's prefix, with retries.
        read: Reads an object whole.
        current: The metadata that is committed now.
        from_rank: The first rank whose commit is out of date: all after a save with collectives, those that have no
            successor after one without.
    """
    try:
        ranks = ((meta.key, meta.etag, rank_of_metadata_key(meta.key)) for meta in store.list())
        for key, etag in [(key, etag) for key, etag, rank in ranks if rank is not None and rank >= from_rank]:
            replaced_keys = load_replaced_keys(read, key)
            delete_version(store, key, etag=etag)
            delete_replaced(store, replaced_keys, current)
    except DcpCloudError as error:
        logger.warning("rank-local commits of an older save remain: %s", error)


def load_replaced_keys(read: ReadObject, key: str) -> tuple[str, ...]:
    """Read which data objects the checkpoint names that is about to be replaced; none, with a warning, if it cannot.

    Args:
        read: Reads an object whole.
        key: Key of the commit object.

    Returns:
        Their keys.
    """
    try:
        return tuple(object_keys(load_metadata(read(key)[0], key=key)))
    except DcpCloudError as error:
        logger.warning("the checkpoint being replaced cannot be read, so its objects are left: %s", error)
        return ()


def object_keys(metadata: Metadata) -> set[str]:
    """List the data objects that a checkpoint names.

    Args:
        metadata: Metadata with storage records, trusted or not.

    Returns:
        Their keys, all below the checkpoint's prefix.

    Raises:
        CorruptCheckpointError: A record is damaged or leaves the prefix.
    """
    return {from_storage_info(info).key for info in (metadata.storage_data or {}).values()}


def _conflict(store: ObjectStore, cause: str | Exception, *, overwrite: bool) -> CheckpointError:
    if overwrite:
        return CommitConflictError(
            "another job committed a checkpoint here while this save was running; this save was not committed",
            key=store.uri,
            cause=cause,
            hint="give each job its own prefix; to replace the other job's checkpoint, save again",
        )
    return CheckpointExistsError(
        "another job committed a checkpoint here while this save was running, and overwrite=False",
        key=store.uri,
        cause=cause,
        hint="give each job its own prefix",
    )


def _may_delete(key: str) -> bool:
    """Allow only data objects directly below the prefix: a forged ``.metadata`` must not choose what is deleted."""
    return key.endswith(DATA_SUFFIX) and "/" not in key


def _planned(metadata: Metadata) -> Iterable[MetadataIndex]:
    for fqn, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            yield MetadataIndex(fqn)
        elif isinstance(entry, TensorStorageMetadata):
            for chunk in entry.chunks:
                yield MetadataIndex(fqn, chunk.offsets)


def _holds(store: ObjectStore, key: str, data: bytes) -> bool:
    try:
        return store.get(key, max_bytes=len(data) + 1).data == data
    except NotFoundError:  # somebody removed the checkpoint
        return False


def _etag(store: ObjectStore, key: str) -> str | None:
    try:
        # Not head: what is missing has no error document there, so that S3 has to be asked a second time.
        return store.get(key, max_bytes=1).meta.etag
    except NotFoundError as error:
        if type(error) is not NotFoundError:
            raise  # the bucket is missing: say so now, not after the data was sent
        return None
