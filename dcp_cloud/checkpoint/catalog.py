"""Which checkpoints lie below a prefix, from one listing.

A listing gives names, lengths and times; that is enough to say what is committed and what is not, in as few requests
as the provider allows (a thousand objects each) and in any order. No object is opened.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from dcp_cloud.checkpoint.foreign import explain_foreign
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CheckpointNotFoundError, DcpCloudError, IncompleteCheckpointError, NotFoundError
from dcp_cloud.format.layout import DATA_SUFFIX, METADATA_KEY, is_data_key, rank_of_metadata_key
from dcp_cloud.stores.base import ObjectMeta, ObjectStore
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.retry import Retrier

logger = logging.getLogger(__name__)

CheckpointState: TypeAlias = Literal["complete", "rank-local", "incomplete"]
"""``complete``: committed for all ranks; ``rank-local``: each rank committed for itself (a save without collectives);
``incomplete``: data without a commit, from a save that is still running or never finished."""

_NUMBER = re.compile(r"\d+")
_EXPLAINED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEntry:
    """One checkpoint of a listing.

    Args:
        path: Where it is, relative to the listed prefix; empty for the prefix itself.
        uri: Where it is, without options.
        name: Last segment of its URI.
        step: The last number in the name, or None.
        state: What a reader would find.
        committed_at: When it was committed; for ``rank-local``, when the last rank did. None if it was not, or if
            the store does not tell.
        modified_at: When its newest object was written, if the store tells.
        size_bytes: Length of its data objects and commits together.
        objects: Number of data objects.
        ranks: Number of rank-local commits.
    """

    path: str
    uri: str
    name: str
    step: int | None
    state: CheckpointState
    committed_at: datetime | None
    modified_at: datetime | None
    size_bytes: int
    objects: int
    ranks: int


@dataclass(slots=True)
class _Found:
    """What a listing has shown of one directory so far."""

    size_bytes: int = 0
    objects: int = 0
    # Data objects that bear this package's names lie directly in their checkpoint; others may lie below it.
    is_own: bool = False
    commit: ObjectMeta | None = None
    rank_commits: list[ObjectMeta] = field(default_factory=list)
    modified_at: datetime | None = None

    def add(self, meta: ObjectMeta, name: str) -> None:
        if name == METADATA_KEY:
            self.commit = meta
        elif rank_of_metadata_key(name) is not None:
            self.rank_commits.append(meta)
        else:
            self.objects += 1
            self.is_own = self.is_own or is_data_key(name)
        self.size_bytes += meta.size_bytes
        self.modified_at = _newest([self.modified_at, meta.modified_at])

    def absorb(self, other: _Found) -> None:
        self.size_bytes += other.size_bytes
        self.objects += other.objects
        self.modified_at = _newest([self.modified_at, other.modified_at])

    @property
    def is_committed(self) -> bool:
        return self.commit is not None or bool(self.rank_commits)


def list_checkpoints(
    store: ObjectStore,
    *,
    prefix: str = "",
    transfer: TransferConfig | None = None,
    hook: EventHook = ignore_event,
) -> list[CheckpointEntry]:
    """List the checkpoints at and below a prefix, at any depth.

    Args:
        store: Store to look into.
        prefix: Whole key segments, without a trailing slash; empty for the store's root.
        transfer: Retries.
        hook: Told of requests.

    Returns:
        Checkpoints by parent, then step, then name; an empty list if there are none.

    Raises:
        BucketNotFoundError: The bucket itself is missing.
        StoreError: The store refused.
    """
    retrier = Retrier(config=(transfer or TransferConfig()).retry, hook=hook)
    # The sums are made inside of the retried call: half a listing cannot be carried on, and a whole one need not be
    # held.
    found = retrier.call(lambda: _survey(store.list(prefix), prefix), verb="list", key=prefix)
    root = f"{store.uri.rstrip('/')}/{prefix}" if prefix else store.uri
    return sorted((_entry(root, path, one) for path, one in found.items()), key=_order)


def explain_absence(store: ObjectStore, *, uri: str, cause: NotFoundError) -> DcpCloudError:
    """Say what is at a place instead of a commit: nothing, unfinished data, or checkpoints below.

    Args:
        store: Store rooted at the place.
        uri: The place, without options.
        cause: What the request for the commit was answered.

    Returns:
        The error to raise.
    """
    objects = _some_objects(store, uri)
    found = _survey(objects, "")
    here = found.pop("", _Found())
    if here.rank_commits:
        return CheckpointNotFoundError(
            "there is no checkpoint of all ranks here",
            key=uri,
            cause=f"{_count(len(here.rank_commits), 'commit')} of one rank each: it was saved without collectives",
            hint="load it as it was saved, with use_collectives=False and as many ranks",
        )
    below = sorted((_entry(uri, path, one) for path, one in found.items() if one.commit is not None), key=_order)
    if below:
        return CheckpointNotFoundError(
            "no checkpoint is committed here",
            key=uri,
            cause=f"{_count(len(below), 'checkpoint')} found below",
            hint=f"use {below[-1].uri}, or list them: dcp-cloud ls {uri} (with the options of your URI, if it has any)",
        )
    if here.objects:
        return IncompleteCheckpointError(
            "the save of this checkpoint did not finish",
            key=uri,
            cause=f"{_count(here.objects, 'data object')} but no .metadata",
            hint="use an earlier checkpoint; 'dcp-cloud ls' lists the checkpoints below a prefix",
        )
    foreign = explain_foreign([meta.key for meta in objects if "/" not in meta.key], name=_last_segment(uri), uri=uri)
    if foreign is not None:
        return foreign
    return CheckpointNotFoundError(
        "no checkpoint is committed here",
        key=uri,
        cause="there are other objects here, but no .metadata" if objects else cause,
        hint="check the URI; 'dcp-cloud ls' lists the checkpoints below a prefix",
    )


def _some_objects(store: ObjectStore, uri: str) -> list[ObjectMeta]:
    """List enough of a place to explain what is wrong with it; it may hold millions of objects."""
    try:
        return list(itertools.islice(store.list(), _EXPLAINED))
    except DcpCloudError as error:
        logger.info("cannot list %s to see what is there: %s", uri, error)
        return []


def _survey(metas: Iterable[ObjectMeta], prefix: str) -> dict[str, _Found]:
    start = len(prefix) + 1 if prefix else 0
    found: dict[str, _Found] = {}
    for meta in metas:
        directory, _, name = meta.key[start:].rpartition("/")
        is_commit = name == METADATA_KEY or rank_of_metadata_key(name) is not None
        if is_commit or (name.startswith("__") and name.endswith(DATA_SUFFIX)):
            found.setdefault(directory, _Found()).add(meta, name)
    return _attribute(found)


def _attribute(found: dict[str, _Found]) -> dict[str, _Found]:
    """Give data that other writers spread over directories below a checkpoint to that checkpoint."""
    checkpoints: dict[str, _Found] = {}
    strays: list[tuple[_Found, _Found]] = []
    for path, one in found.items():
        owner = None if one.is_committed or one.is_own else _owner(path, found)
        if owner is None:
            checkpoints[path] = one
        else:
            strays.append((owner, one))
    for owner, one in strays:
        owner.absorb(one)
    return checkpoints


def _owner(path: str, found: dict[str, _Found]) -> _Found | None:
    while path:
        path = path.rpartition("/")[0]
        if path in found and found[path].is_committed:
            return found[path]
    return None


def _entry(root: str, path: str, found: _Found) -> CheckpointEntry:
    uri = f"{root.rstrip('/')}/{path}" if path else root
    name = _last_segment(uri)
    commits = [found.commit] if found.commit is not None else found.rank_commits
    return CheckpointEntry(
        path=path,
        uri=uri,
        name=name,
        step=step_of(name),
        state="complete" if found.commit is not None else "rank-local" if found.rank_commits else "incomplete",
        committed_at=_newest([meta.modified_at for meta in commits]),
        modified_at=found.modified_at,
        size_bytes=found.size_bytes,
        objects=found.objects,
        ranks=len(found.rank_commits),
    )


def step_of(name: str) -> int | None:
    """Read the step out of a checkpoint's name: the last number in it.

    Args:
        name: ``step-100``, ``epoch=3-step=1200``, ``iter_0005`` …

    Returns:
        The number, or None if there is none.
    """
    numbers = _NUMBER.findall(name)
    # The length is bounded because a bucket can hold any name, and Python refuses to read endless numbers.
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= 18 else None


def _last_segment(uri: str) -> str:
    """Give the last segment of a URI's path; a bucket alone has none."""
    path = uri.partition("://")[2].partition("/")[2]
    return path.rstrip("/").rpartition("/")[2]


def _order(entry: CheckpointEntry) -> tuple[str, int, str]:
    parent = entry.path.rpartition("/")[0]
    return parent, -1 if entry.step is None else entry.step, entry.path


def _newest(times: Iterable[datetime | None]) -> datetime | None:
    return max((time for time in times if time is not None), default=None)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
