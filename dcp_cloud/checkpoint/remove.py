"""Removing a checkpoint so that nothing half-removed ever looks complete.

The commits go first, then the data, then what unfinished saves left. Nothing is read: the names tell what belongs to a
checkpoint, so a damaged one can be removed too, a forged ``.metadata`` cannot choose what is deleted, and a removal
that broke off is finished by the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dcp_cloud.checkpoint.cleanup import delete_keys, delete_versions, is_commit, is_data, list_uploads, split_key
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CheckpointNotFoundError, CommitConflictError, StoreError
from dcp_cloud.stores.base import MultipartUpload, ObjectMeta, ObjectStore
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a removal deletes, in this order, or has deleted.

    Args:
        uri: The place, without options.
        recursive: Whether checkpoints below the place are meant too.
        commits: ``.metadata`` and rank-local commits.
        data: Data objects, those of unfinished saves included.
        uploads: Unfinished uploads, and what crashed writes to local disks left.
        others: What is at and below the place and is left alone: other files, and without ``recursive`` everything
            in directories below.
        uploads_error: Why unfinished uploads could not be listed, or None.
    """

    uri: str
    recursive: bool
    commits: tuple[ObjectMeta, ...]
    data: tuple[ObjectMeta, ...]
    uploads: tuple[MultipartUpload, ...]
    others: tuple[ObjectMeta, ...]
    uploads_error: StoreError | None = None

    @property
    def size_bytes(self) -> int:
        """Length of the objects to delete."""
        return sum(meta.size_bytes for meta in (*self.commits, *self.data))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The directories that are meant and have a commit, relative to the place; empty for the place itself."""
        return _directories(self.commits)

    @property
    def kept_checkpoints(self) -> tuple[str, ...]:
        """The directories below that have a commit and are left alone."""
        return _directories(meta for meta in self.others if is_commit(split_key(meta.key)[1]))

    @property
    def unfinished_at(self) -> datetime | None:
        """When a save that has not been committed last wrote here, as far as the store tells."""
        committed: dict[str, datetime] = {}
        for meta in self.commits:
            if meta.modified_at is not None:
                directory = split_key(meta.key)[0]
                committed[directory] = max(meta.modified_at, committed.get(directory, meta.modified_at))
        times = [(split_key(meta.key)[0], meta.modified_at) for meta in self.data]
        times += [(split_key(upload.key)[0], upload.started_at) for upload in self.uploads]
        return max(
            (time for place, time in times if time is not None and (place not in committed or time > committed[place])),
            default=None,
        )


def plan_removal(
    store: ObjectStore,
    *,
    recursive: bool = False,
    transfer: TransferConfig | None = None,
    hook: EventHook = ignore_event,
) -> Removal:
    """See what a removal would delete. Nothing is changed.

    Args:
        store: Store rooted at the checkpoint.
        recursive: Whether checkpoints in directories below are meant too.
        transfer: Retries.
        hook: Told of requests.

    Returns:
        What would be deleted.

    Raises:
        CheckpointNotFoundError: There is nothing of a checkpoint here.
        StoreError: The store refused.
    """
    retrying = _retrying(store, transfer, hook)
    commits: list[ObjectMeta] = []
    data: list[ObjectMeta] = []
    others: list[ObjectMeta] = []
    for meta in retrying.list():
        directory, name = split_key(meta.key)
        is_meant = recursive or not directory
        (commits if is_meant and is_commit(name) else data if is_meant and is_data(name) else others).append(meta)
    uploads = list_uploads(retrying)
    removal = Removal(
        uri=store.uri,
        recursive=recursive,
        commits=_sorted(commits),
        data=_sorted(data),
        uploads=tuple(upload for upload in uploads.found if recursive or "/" not in upload.key),
        others=_sorted(others),
        uploads_error=uploads.error,
    )
    if not (commits or data or removal.uploads):
        raise _nothing_here(removal)
    return removal


def remove_checkpoint(
    store: ObjectStore,
    *,
    recursive: bool = False,
    planned: Removal | None = None,
    transfer: TransferConfig | None = None,
    hook: EventHook = ignore_event,
) -> Removal:
    """Remove a checkpoint, or what is left of one. Running it again finishes a removal that broke off.

    Nobody may be saving here meanwhile: what an uncommitted save has stored is removed as well.

    Args:
        store: Store rooted at the checkpoint.
        recursive: Remove the checkpoints in directories below too. Files of other kinds are never touched.
        planned: What :func:`plan_removal` found, if somebody was asked whether to go on; then exactly this is deleted.
        transfer: Retries.
        hook: Told of requests.

    Returns:
        What was deleted.

    Raises:
        CheckpointNotFoundError: There is nothing of a checkpoint here.
        CommitConflictError: A checkpoint was committed here since the removal was planned. It stays, and no data
            was deleted.
        StoreError: The store refused.
    """
    retrying = _retrying(store, transfer, hook)
    if planned is None:
        planned = plan_removal(store, recursive=recursive, transfer=transfer, hook=hook)
    else:
        _check_unchanged(retrying, planned)
    # All commits before any data: at every moment whatever has a commit is whole.
    for meta in delete_versions(retrying, planned.commits, transfer or TransferConfig()):
        raise _conflict(planned, meta, "it stays, and no data was deleted")
    delete_keys(retrying, [meta.key for meta in planned.data])
    for upload in planned.uploads:
        upload.abort()
    logger.info("removed %d commits and %d data objects of %s", len(planned.commits), len(planned.data), planned.uri)
    return planned


def _check_unchanged(store: ObjectStore, planned: Removal) -> None:
    known = {meta.key: meta.etag for meta in planned.commits}
    for meta in store.list():
        directory, name = split_key(meta.key)
        if is_commit(name) and (planned.recursive or not directory) and known.get(meta.key) != meta.etag:
            raise _conflict(planned, meta, "nothing was deleted")


def _conflict(planned: Removal, meta: ObjectMeta, outcome: str) -> CommitConflictError:
    return CommitConflictError(
        f"a checkpoint was committed here in the meantime; {outcome}",
        key=f"{planned.uri}/{meta.key}",
        hint="see whether a job is saving here, then run the removal again",
    )


def _nothing_here(removal: Removal) -> CheckpointNotFoundError:
    below = len(removal.kept_checkpoints)
    if below:
        return CheckpointNotFoundError(
            "there is no checkpoint here",
            key=removal.uri,
            cause=f"{below} checkpoint{'' if below == 1 else 's'} found below",
            hint="name the one to remove, or remove them all with --recursive (recursive=True)",
        )
    return CheckpointNotFoundError(
        "there is nothing of a checkpoint here",
        key=removal.uri,
        cause="there are other objects here" if removal.others else None,
        hint="check the URI; 'dcp-cloud ls' lists the checkpoints below a prefix",
    )


def _retrying(store: ObjectStore, transfer: TransferConfig | None, hook: EventHook) -> RetryingStore:
    return RetryingStore(store, Retrier(config=(transfer or TransferConfig()).retry, hook=hook))


def _directories(metas: Iterable[ObjectMeta]) -> tuple[str, ...]:
    return tuple(sorted({split_key(meta.key)[0] for meta in metas}))


def _sorted(metas: Iterable[ObjectMeta]) -> tuple[ObjectMeta, ...]:
    return tuple(sorted(metas, key=lambda meta: meta.key))
