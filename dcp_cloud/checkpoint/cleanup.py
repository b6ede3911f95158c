"""What a removal and a sweep share: which objects are a checkpoint's, and how they are listed and deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import InvalidRequestError, PermissionDeniedError, PreconditionError, StoreError
from dcp_cloud.format.layout import DATA_SUFFIX, METADATA_KEY, rank_of_metadata_key
from dcp_cloud.stores.base import MultipartUpload, ObjectMeta, ObjectStore
from dcp_cloud.stores.keys import OWN_PREFIX
from dcp_cloud.transfer.workers import WorkerPool

# What S3 deletes in one request (https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html). More at once
# would be sent again as a whole if one request of it failed.
_BATCH_KEYS = 1000
# torch's own writer puts its commit there before it renames it (torch/distributed/checkpoint/filesystem.py).
_UNFINISHED_COMMIT = f"{METADATA_KEY}.tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """The unfinished uploads that belong to checkpoints.

    Args:
        found: The uploads.
        error: Why they could not be listed, or None.
    """

    found: tuple[MultipartUpload, ...]
    error: StoreError | None = None


def split_key(key: str) -> tuple[str, str]:
    """Split a key into the directory and the name in it."""
    directory, _, name = key.rpartition("/")
    return directory, name


def is_commit(name: str) -> bool:
    """Tell whether an object of this name commits a checkpoint, of all ranks or of one."""
    return name == METADATA_KEY or rank_of_metadata_key(name) is not None


def is_data(name: str) -> bool:
    """Tell whether an object of this name is part of a checkpoint, whoever wrote it, without committing it."""
    return name.endswith(DATA_SUFFIX) or (name.startswith(("__", METADATA_KEY)) and name.endswith(_UNFINISHED_COMMIT))


def list_uploads(store: ObjectStore) -> Uploads:
    """List the unfinished uploads of checkpoints below a store's root; those of other programs are left out.

    Args:
        store: Store to look into, with retries.

    Returns:
        The uploads. That they may not be listed, or that the server does not know how, is no reason to leave the rest
        of the work undone, so it is in the answer.
    """
    try:
        return Uploads(found=tuple(upload for upload in store.list_multiparts() if _is_ours(upload.key)))
    except (PermissionDeniedError, InvalidRequestError) as error:
        return Uploads(found=(), error=error)


def delete_keys(store: ObjectStore, keys: Sequence[str]) -> None:
    """Delete objects, in requests that are cheap to repeat.

    Args:
        store: Store, with retries.
        keys: Which.
    """
    for start in range(0, len(keys), _BATCH_KEYS):
        store.delete(keys[start : start + _BATCH_KEYS])


def delete_version(store: ObjectStore, key: str, *, etag: str) -> None:
    """Delete an object, and not what another job may have put in its place since it was looked at.

    Args:
        store: Store, with retries.
        key: Key of the object.
        etag: The version that is meant.

    Raises:
        PreconditionError: Another one is there now; it stays.
    """
    try:
        store.delete([key], if_match=etag)
    except InvalidRequestError:
        # S3 itself refused the condition as not implemented until 2025; who copies it may still. Then the look that
        # was taken just now has to do.
        store.delete([key])


def delete_versions(store: ObjectStore, metas: Sequence[ObjectMeta], transfer: TransferConfig) -> list[ObjectMeta]:
    """Delete objects as they were seen; one by one, since each has its own condition.

    Args:
        store: Store, with retries.
        metas: The objects.
        transfer: How many requests at once.

    Returns:
        Those that were written anew since, and stay.
    """
    stayed: list[ObjectMeta] = []

    def delete(meta: ObjectMeta) -> None:
        try:
            delete_version(store, meta.key, etag=meta.etag)
        except PreconditionError:
            stayed.append(meta)

    if metas:
        most = min(transfer.max_concurrency, len(metas))
        with WorkerPool(most, queue_limit=most, name="dcp_cloud-delete") as pool:
            for meta in metas:
                pool.submit(lambda meta=meta: delete(meta))  # type: ignore[misc]  # the default binds the loop's value
            pool.join()
    return stayed


def _is_ours(key: str) -> bool:
    name = split_key(key)[1]
    return is_commit(name) or is_data(name) or name.startswith(OWN_PREFIX)
