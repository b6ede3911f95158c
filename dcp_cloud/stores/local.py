"""``file:///dir``: objects as files, each appearing whole at once.

An object is written to a hidden file beside its place, made durable, and then renamed (or, when it must not replace
anything, linked) into its place. Names that begin with ``.dcp-cloud-`` are the store's own and no objects.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from dcp_cloud.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, PreconditionError, StoreError
from dcp_cloud.stores.base import (
    Buffers,
    IfAbsent,
    IfMatch,
    ObjectData,
    ObjectMeta,
    ObjectStore,
    PutCondition,
    StoreLimits,
)
from dcp_cloud.stores.keys import OWN_PREFIX, check_crc32, next_level, range_beyond_end, total_bytes
from dcp_cloud.stores.local_files import (
    describe,
    etag_of,
    make_directory,
    nearest_existing,
    opened,
    read_exactly,
    settle,
    sync_directory,
    translated,
    write_fully,
)
from dcp_cloud.stores.local_leftover import LocalLeftover, find_leftover
from dcp_cloud.stores.local_upload import UPLOAD_PREFIX, LocalUpload, create_upload, find_upload
from dcp_cloud.uri import StoreURI

ResultT = TypeVar("ResultT")

_PUT_PREFIX = f"{OWN_PREFIX}put-"
# How often a directory may vanish between its creation and the file's: a delete beside us removes empty ones.
_DIRECTORY_TRIES = 10
# What link says where there are no hard links (link(2); vfat and FUSE: EPERM, CIFS: EOPNOTSUPP).
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)

_GIB = 1024**3
# A file system has limits of its own; these only keep part numbers and lengths in a sane range.
_LIMITS = StoreLimits(
    min_part_bytes=1,
    max_part_bytes=1024 * _GIB,
    max_parts=100_000,
    max_put_bytes=1024 * _GIB,
    max_object_bytes=1024 * 1024 * _GIB,
)


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Files below a directory. Nothing outside of it is touched, neither by ``..`` nor through symbolic links.

    Args:
        root: Absolute path of the directory; it is created when first written to.
    """

    root: str

    @property
    def uri(self) -> str:
        """The root as text that may be shown."""
        return f"file://{self.root}"

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        return _LIMITS

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        with self._reading("head", key) as fd:
            return describe(key, _stat_file(fd, key))

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object."""
        with self._reading("get", key) as fd:
            meta = describe(key, _stat_file(fd, key))
            data = bytearray(min(meta.size_bytes, max_bytes))
            if not read_exactly(fd, [memoryview(data)], 0):
                raise range_beyond_end(key, 0, len(data), None)
            return ObjectData(meta=meta, data=bytes(data))

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers from ``start`` on."""
        with self._reading("get_range", key) as fd:
            meta = describe(key, _stat_file(fd, key))
            if if_match is not None and if_match != meta.etag:
                raise PreconditionError("the object is another version", key=key)
            if not read_exactly(fd, buffers, start):
                raise range_beyond_end(key, start, total_bytes(buffers), meta.size_bytes)

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """Store a whole object."""
        check_crc32(data, crc32, key=key)
        place = self._place(key)
        with translated("put", key):
            temporary, fd = self._create_beside(place)
            try:
                try:
                    write_fully(fd, data, 0)
                    settled = settle(fd)
                finally:
                    os.close(fd)
                _publish(temporary, place, condition, key)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            sync_directory(os.path.dirname(place))
        return describe(key, settled)

    def create_multipart(self, key: str) -> LocalUpload:
        """Begin an upload in parts."""
        place = self._place(key)
        with translated("create_multipart", key):
            return _in_directory(place, lambda: create_upload(place, key))

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects."""
        failure: StoreError | None = None
        for key in keys:
            try:
                self._delete_one(key, if_match)
            except StoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix."""
        for key, entry in self._walk(prefix):
            if not entry.name.startswith(OWN_PREFIX):
                with suppress(FileNotFoundError):
                    yield describe(key, entry.stat(follow_symlinks=False))

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level."""
        return next_level((meta.key for meta in self.list(prefix)), prefix)

    def list_multiparts(self, prefix: str = "") -> Iterator[LocalUpload | LocalLeftover]:
        """List unfinished uploads, and what crashes left of other writes."""
        for key, entry in self._walk(prefix):
            if entry.name.startswith((UPLOAD_PREFIX, _PUT_PREFIX)):
                found = find_upload(entry.path, key.rpartition("/")[0]) or find_leftover(entry.path, key)
                if found is not None:
                    yield found

    def close(self) -> None:
        """Do nothing: there are no connections."""

    @contextmanager
    def _reading(self, action: str, key: str) -> Iterator[int]:
        with translated(action, key):
            try:
                with opened(self._place(key), os.O_RDONLY) as fd:
                    yield fd
            except NotADirectoryError as error:
                raise NotFoundError("no such object", key=key, cause="a segment of the key is an object") from error

    def _place(self, key: str) -> str:
        """Turn a key into a path below the root, or refuse it."""
        segments = key.split("/")
        if any(segment in ("", ".", "..") or "\0" in segment for segment in segments):
            raise InvalidRequestError("this key cannot be a path", key=key, hint="use segments that are names")
        if any(segment.startswith(OWN_PREFIX) for segment in segments):
            raise InvalidRequestError(f"names that begin with {OWN_PREFIX} are the store's own", key=key)
        place = os.path.join(self.root, *segments)
        self._check_inside(place, key)
        return place

    def _check_inside(self, path: str, key: str) -> None:
        root, real = os.path.realpath(self.root), os.path.realpath(path)
        if os.path.commonpath((root, real)) != root:
            raise InvalidRequestError("a symbolic link leads out of the store's root", key=key)

    def _create_beside(self, place: str) -> tuple[str, int]:
        temporary = os.path.join(os.path.dirname(place), f"{_PUT_PREFIX}{uuid.uuid4().hex}")
        fd = _in_directory(place, lambda: os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return temporary, fd

    def _delete_one(self, key: str, etag: str | None) -> None:
        place = self._place(key)
        with translated("delete", key):
            try:
                if etag is None:
                    os.unlink(place)
                else:
                    with _locked(place, etag, key):
                        os.unlink(place)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            # Without objects there is no prefix: empty directories go too.
            directory = os.path.dirname(place)
            with suppress(OSError):
                while len(directory) > len(self.root):
                    os.rmdir(directory)
                    directory = os.path.dirname(directory)

    def _walk(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Go through files and upload directories; symbolic links are not followed."""
        top = self._place(prefix) if prefix else self.root
        waiting = [(top, prefix)]
        while waiting:
            directory, name = waiting.pop()
            with translated("list", name):
                try:
                    entries = list(os.scandir(directory))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # there is nothing, or it went in the meantime
            for entry in entries:
                key = f"{name}/{entry.name}" if name else entry.name
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory and not entry.name.startswith(OWN_PREFIX):
                    waiting.append((entry.path, key))
                elif is_directory or entry.is_file(follow_symlinks=False):
                    yield key, entry


def _in_directory(place: str, make: Callable[[], ResultT]) -> ResultT:
    """Make something in the directory of a place, and the directory if it is missing."""
    directory = os.path.dirname(place)
    failure: OSError | None = None
    for _ in range(_DIRECTORY_TRIES):
        try:
            make_directory(directory)
            return make()
        except FileNotFoundError as error:
            failure = error
        except (FileExistsError, NotADirectoryError) as error:
            failure = error
            break
    assert failure is not None  # noqa: S101 - the loop runs at least once
    raise InvalidRequestError(
        "the directory cannot be made",
        key=f"file://{directory}",
        cause=f"{nearest_existing(directory)}: {failure.strerror}",
        hint="see whether the disk is mounted, or choose another place"
        if isinstance(failure, FileNotFoundError)
        else "choose another place: a part of this path is a file",
    ) from failure


def _publish(temporary: str, place: str, condition: PutCondition | None, key: str) -> None:
    if isinstance(condition, IfAbsent):
        try:
            os.link(temporary, place)
        except FileExistsError as error:
            raise AlreadyExistsError("the object is already there", key=key) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _publish_without_links(temporary, place, key)
    elif isinstance(condition, IfMatch):
        _replace_version(temporary, place, condition.etag, key)
    else:
        os.replace(temporary, place)


def _publish_without_links(temporary: str, place: str, key: str) -> None:
    """Rename a file into a free place, where the file system has no hard links: FAT, and many in user space.

    A rename alone would replace what is there. The lock is on the directory, which a crash releases; an empty file as a
    claim would stay, and be taken for a commit.
    """
    with opened(os.path.dirname(place), os.O_RDONLY | os.O_DIRECTORY) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise InvalidRequestError(
                "this file system can neither link nor lock, so that two jobs could not be told apart",
                key=key,
                cause=error.strerror,
                hint="save to a disk of this machine or to an object store; 'dcp-cloud cp' copies from there",
            ) from error
        if os.path.lexists(place):
            raise AlreadyExistsError("the object is already there", key=key)
        os.replace(temporary, place)


def _replace_version(temporary: str, place: str, etag: str, key: str) -> None:
    """Replace a file if it is still that version."""
    try:
        with _locked(place, etag, key):
            os.replace(temporary, place)
    except FileNotFoundError as error:
        raise PreconditionError("the object is gone", key=key) from error


@contextmanager
def _locked(place: str, etag: str, key: str) -> Iterator[None]:
    """Keep others from replacing or deleting a file on condition, if it is still that version.

    The lock is on the very file that is to go: of several that hold its version, the first one acts, and the others
    find under their lock that the place holds another file, or none.
    """
    with opened(place, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if etag_of(os.stat(place)) != etag:
            raise PreconditionError("the object is another version", key=key)
        yield


def _stat_file(fd: int, key: str) -> os.stat_result:
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise NotFoundError("no such object", key=key, cause="there is a directory of this name")
    return found


def open_local(uri: StoreURI, config: None) -> ObjectStore:  # noqa: ARG001 - every loader takes a configuration
    """Open the directory that a ``file://`` URI names."""
    return LocalStore(uri.prefix)
