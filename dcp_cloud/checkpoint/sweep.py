"""Sweeping up what crashed saves left: data that no commit names, and uploads that nobody will finish.

A save that is running looks just like one that has crashed, so only what is older than any save takes is touched.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from dcp_cloud.checkpoint.cleanup import delete_versions, is_commit, list_uploads, split_key
from dcp_cloud.checkpoint.commit import object_keys
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError, DcpCloudError, NotFoundError, RetriesExhaustedError, StoreError
from dcp_cloud.format.layout import METADATA_KEY, is_data_key
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.stores.base import MultipartUpload, ObjectMeta, ObjectStore
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

logger = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
"""The default age: no save should take so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A directory that was left alone because one of its commits cannot be read.

    Args:
        path: The directory, relative to the swept place; empty for the place itself.
        key: The commit, relative to the swept place.
        error: Why it cannot be read.
    """

    path: str
    key: str
    error: DcpCloudError


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep deleted, or would delete.

    Args:
        uri: The place, without options.
        older_than_s: The age, seconds.
        dry_run: Whether nothing was deleted.
        orphans: Data objects that no commit names.
        uploads: Stale unfinished uploads, and what crashed writes to local disks left.
        young: Number of data objects and uploads that are too young to be judged.
        undated: Number of those whose age the store does not tell; they are left alone.
        unreadable: Directories that were left alone because of a commit that cannot be read.
        uploads_error: Why unfinished uploads could not be listed, or None.
    """

    uri: str
    older_than_s: float
    dry_run: bool
    orphans: tuple[ObjectMeta, ...]
    uploads: tuple[MultipartUpload, ...]
    young: int
    undated: int
    unreadable: tuple[Unreadable, ...]
    uploads_error: StoreError | None = None

    @property
    def size_bytes(self) -> int:
        """Length of the orphans."""
        return sum(meta.size_bytes for meta in self.orphans)


def sweep(
    store: ObjectStore,
    *,
    older_than_s: float = DAY_S,
    dry_run: bool = False,
    transfer: TransferConfig | None = None,
    allow_global: Callable[[str, str], object | None] | None = None,
    unsafe_metadata: bool = False,
    hook: EventHook = ignore_event,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> SweepReport:
    """Delete what crashed saves left at and below a place.

    Nothing that a commit names is touched, no object that this package would not have named, and nothing in a
    directory whose commit cannot be read.

    Args:
        store: Store rooted at the place.
        older_than_s: Leave alone what is younger, seconds. Has to be longer than the longest save takes, since the
            data of a save has no commit before it ends.
        dry_run: Only tell what would be deleted.
        transfer: Concurrency and retries.
        allow_global: Allows further names in ``.metadata``: gets module and name, returns the object or None.
        unsafe_metadata: Load ``.metadata`` with the plain unpickler, which runs whatever code it holds.
        hook: Told of requests.
        now: Gives the time, with time zone.

    Returns:
        What was deleted and what was left.

    Raises:
        ConfigError: The age is negative.
        StoreError: The store refused. What was deleted until then is gone.
    """
    if older_than_s < 0:
        raise ConfigError(f"older_than_s={older_than_s!r} is out of range", hint="it must be at least 0")
    config = transfer or TransferConfig()
    retrying = RetryingStore(store, Retrier(config=config.retry, hook=hook))

    def names_in(key: str) -> set[str]:
        pickled, _ = read_object(store, key, config, hook=hook)
        return object_keys(
            load_metadata(pickled, key=f"{store.uri}/{key}", extra_allowed=allow_global, unsafe=unsafe_metadata)
        )

    # The uploads first: one that is completed meanwhile is then among the objects, and too young.
    uploads = list_uploads(retrying)
    found = _Found(now() - timedelta(seconds=older_than_s), _Named(names_in))
    for upload in uploads.found:
        found.add_upload(upload)
    for meta in retrying.list():
        found.add_object(meta)
    orphans, stale = found.judge()
    if not dry_run:
        orphans = [meta for group in _by_directory(orphans) for meta in _delete(retrying, group, found, config)]
        for upload in stale:
            upload.abort()
        logger.info("swept %s: %d data objects, %d uploads", store.uri, len(orphans), len(stale))
    return SweepReport(
        uri=store.uri,
        older_than_s=older_than_s,
        dry_run=dry_run,
        orphans=tuple(orphans),
        uploads=tuple(stale),
        young=found.young,
        undated=found.undated,
        unreadable=tuple(found.named.unreadable),
        uploads_error=uploads.error,
    )


def _delete(
    store: ObjectStore, orphans: list[ObjectMeta], found: _Found, config: TransferConfig
) -> Sequence[ObjectMeta]:
    """Delete the orphans of one directory that still are ones, as the versions that were judged.

    Reading the commits of a large place takes minutes. Meanwhile somebody may have committed what lay here for days: a
    copy, for one, that had broken off and was resumed.
    """
    directory = split_key(orphans[0].key)[0]
    there = {meta.key: meta for meta in store.list(directory) if split_key(meta.key)[0] == directory}
    found.named.commits[directory] = [key for key in there if is_commit(split_key(key)[1])]
    for place in list(_with_parents(directory))[1:]:
        key = f"{place}/{METADATA_KEY}" if place else METADATA_KEY
        if key not in found.named.commits[place] and _is_there(store, key):
            found.named.commits[place].append(key)
    named = found.named.below(directory)
    if named is None:
        return ()
    doomed = [meta for meta in orphans if there.get(meta.key) == meta and meta.key not in named]
    stayed = {meta.key for meta in delete_versions(store, doomed, config)}
    return [meta for meta in doomed if meta.key not in stayed]


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.head(key)
    except NotFoundError:
        return False
    return True


def _by_directory(metas: Iterable[ObjectMeta]) -> list[list[ObjectMeta]]:
    groups: defaultdict[str, list[ObjectMeta]] = defaultdict(list)
    for meta in metas:
        groups[split_key(meta.key)[0]].append(meta)
    return list(groups.values())


@dataclass(slots=True)
class _Named:
    """The objects that commits name, read as far as they are needed.

    Args:
        names_in: Reads the names in the commit of this key, relative to its directory.
        commits: Directory to the keys of its commits.
        unreadable: Directories of which this is not known.
    """

    names_in: Callable[[str], set[str]]
    commits: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unreadable: list[Unreadable] = field(default_factory=list)

    def below(self, directory: str) -> set[str] | None:
        """Give the keys that the commits of a directory, or of those above it, name; None if one cannot be read."""
        named: set[str] = set()
        for place in _with_parents(directory):
            start = f"{place}/" if place else ""
            for key in self.commits.get(place, ()):
                try:
                    named.update(start + name for name in self.names_in(key))
                except RetriesExhaustedError:
                    raise
                except DcpCloudError as error:
                    self.unreadable.append(Unreadable(path=directory, key=key, error=error))
                    return None
        return named


@dataclass(slots=True)
class _Found:
    """What listings have shown so far.

    Args:
        before: What is younger is left alone.
        named: What commits name.
        objects: Directory to old data objects in it.
        uploads: Directory to old uploads to it.
        young: Number of younger data objects and uploads.
        undated: Number of those of unknown age.
    """

    before: datetime
    named: _Named
    objects: defaultdict[str, list[ObjectMeta]] = field(default_factory=lambda: defaultdict(list))
    uploads: defaultdict[str, list[MultipartUpload]] = field(default_factory=lambda: defaultdict(list))
    young: int = 0
    undated: int = 0

    def add_upload(self, upload: MultipartUpload) -> None:
        if self._is_old(upload.started_at):
            self.uploads[split_key(upload.key)[0]].append(upload)

    def add_object(self, meta: ObjectMeta) -> None:
        directory, name = split_key(meta.key)
        if is_commit(name):
            self.named.commits[directory].append(meta.key)
        elif is_data_key(name) and self._is_old(meta.modified_at):
            self.objects[directory].append(meta)

    def judge(self) -> tuple[list[ObjectMeta], list[MultipartUpload]]:
        orphans: list[ObjectMeta] = []
        stale: list[MultipartUpload] = []
        for directory in sorted({*self.objects, *self.uploads}):
            named = self.named.below(directory)
            if named is not None:
                orphans.extend(meta for meta in self.objects.get(directory, ()) if meta.key not in named)
                stale.extend(self.uploads.get(directory, ()))
        return orphans, stale

    def _is_old(self, time: datetime | None) -> bool:
        if time is None:
            self.undated += 1
            return False
        is_old = time <= self.before
        self.young += not is_old
        return is_old


def _with_parents(directory: str) -> Iterator[str]:
    yield directory
    while directory:
        directory = split_key(directory)[0]
        yield directory
