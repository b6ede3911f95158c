"""Deleting one checkpoint of a run while others may be writing to the same place.

First a mark with the names of its data is stored beside it, then the commit goes, then the data, then the mark. Whoever
finds a mark without a commit finishes the removal, so an interruption leaves nothing for long. Only objects that the
removed commit named are deleted: the data of another save carries other names and stays.

The mark is itself called like a data object that no commit names, so ``rm`` and ``sweep`` know what to do with it.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dcp_cloud.checkpoint.cleanup import delete_keys, delete_version, is_data, list_uploads
from dcp_cloud.errors import CommitConflictError, NotFoundError, PreconditionError
from dcp_cloud.format.layout import METADATA_KEY, data_key, is_data_key
from dcp_cloud.manager.steps import Commit, Steps
from dcp_cloud.stores.base import ObjectMeta, ObjectStore

logger = logging.getLogger(__name__)

# No save makes so many objects that one would get this number.
_MARK_INDEX = 999_999_999
_MARK = re.compile(rf"^__0_{_MARK_INDEX}\.[0-9a-f]{{32}}\.distcp$")
# Some hundred thousand names.
_MAX_MARK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What lies directly in the directory of a step.

    Args:
        store: Store rooted there, with retries.
        data: Data objects, marks left out.
        marks: Marks of removals that have not ended.
    """

    store: ObjectStore
    data: tuple[ObjectMeta, ...]
    marks: tuple[ObjectMeta, ...]


def retire(steps: Steps, step: int, *, stale_before: datetime, etag: str | None = None) -> bool:
    """Delete the checkpoint of a step.

    Args:
        steps: The steps.
        step: Which.
        stale_before: An unfinished save that wrote last before this time has crashed.
        etag: The version of the commit that is meant; None for whichever there is.

    Returns:
        Whether there was a checkpoint.

    Raises:
        CommitConflictError: Another save is writing here, or has committed since; what it wrote stays.
        CheckpointError: The commit cannot be read, so nobody knows what belongs to it; nothing was deleted.
        StoreError: The store refused.
    """
    try:
        commit = steps.read(step)
    except NotFoundError:
        return False
    place = _look(steps, step)
    if etag is not None and commit.etag != etag:
        raise _conflict(place.store, "it was saved anew in the meantime")
    _refuse_if_busy(place, commit, stale_before)
    mark = data_key(0, _MARK_INDEX, uuid.uuid4().hex)
    keys = sorted(key for key in commit.keys if _may_delete(key))
    place.store.put(mark, [memoryview(json.dumps(keys).encode())])
    if (now := steps.head(step)) is None or now.etag != commit.etag:
        place.store.delete([mark])
        if now is None:
            return False
        raise _conflict(place.store, "it was saved anew in the meantime")
    try:
        delete_version(place.store, METADATA_KEY, etag=commit.etag)
    except PreconditionError as error:
        place.store.delete([mark])
        raise _conflict(place.store, "it was saved anew in the meantime") from error
    delete_keys(place.store, keys)
    delete_keys(place.store, [mark, *(found.key for found in place.marks)])
    logger.info("deleted %s", place.store.uri)
    return True


def finish_retiring(steps: Steps, step: int) -> bool:
    """Finish a removal that broke off after the commit was deleted.

    Args:
        steps: The steps.
        step: One whose directory has no commit.

    Returns:
        Whether there was one.

    Raises:
        StoreError: The store refused.
    """
    place = _look(steps, step)
    for mark in place.marks:
        named = set(_read_mark(place.store, mark))
        # Names of other writers occur again in later saves; what is younger than the mark is not what it meant.
        doomed = [
            meta.key
            for meta in place.data
            if meta.key in named and (is_data_key(meta.key) or _is_older(meta, mark.modified_at))
        ]
        if steps.head(step) is not None:
            return False  # committed anew: the next removal takes the mark along
        delete_keys(place.store, doomed)
        place.store.delete([mark.key])
        logger.info("finished the removal of %s", place.store.uri)
    return bool(place.marks)


def _look(steps: Steps, step: int) -> _Place:
    store = steps.retrying(step)
    found = [meta for meta in store.list() if is_data(meta.key) and "/" not in meta.key]
    marks = tuple(meta for meta in found if _MARK.match(meta.key))
    return _Place(store=store, data=tuple(meta for meta in found if not _MARK.match(meta.key)), marks=marks)


def _refuse_if_busy(place: _Place, commit: Commit, stale_before: datetime) -> None:
    """See whether another save has begun to replace this checkpoint: its objects and uploads are not in the commit."""
    marked = {key for mark in place.marks for key in _read_mark(place.store, mark)}
    times = [meta.modified_at for meta in place.data if meta.key not in commit.keys | marked]
    times += [upload.started_at for upload in list_uploads(place.store).found if "/" not in upload.key]
    if any(time is None or time > stale_before for time in times):
        raise _conflict(place.store, "there is data of a save that has not been committed")


def _read_mark(store: ObjectStore, mark: ObjectMeta) -> Iterable[str]:
    """Read the names in a mark; anybody can have written it, so only names of data directly beside it count."""
    try:
        names = json.loads(store.get(mark.key, max_bytes=_MAX_MARK_BYTES).data)
    except (NotFoundError, ValueError, RecursionError):
        return []  # not found: somebody else has just finished that removal
    return [name for name in names if isinstance(name, str) and _may_delete(name)] if isinstance(names, list) else []


def _may_delete(key: str) -> bool:
    return is_data(key) and "/" not in key


def _is_older(meta: ObjectMeta, time: datetime | None) -> bool:
    return time is not None and meta.modified_at is not None and meta.modified_at <= time


def _conflict(store: ObjectStore, cause: str) -> CommitConflictError:
    return CommitConflictError(
        "another save seems to be working on this checkpoint, so it was not deleted",
        key=store.uri,
        cause=cause,
        hint="give each job a prefix of its own; what a crashed save left counts as such once it is old enough",
    )
