"""Files below the local store: vectored reads and writes, durable renames, and what the system's errors mean."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from types import MappingProxyType

from dcp_cloud.errors import (
    DcpCloudError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    StoreError,
    TransientError,
)
from dcp_cloud.stores.base import Buffers, ObjectMeta

# Source: limits.h of Linux and macOS (IOV_MAX).
_MAX_VECTORS = 1024
_COPY_BYTES = 1024 * 1024

_ERRNOS: Mapping[int, type[StoreError]] = MappingProxyType(
    {
        errno.ENOENT: NotFoundError,
        errno.EACCES: PermissionDeniedError,
        errno.EPERM: PermissionDeniedError,
        errno.EROFS: PermissionDeniedError,
        errno.EIO: TransientError,
        errno.EAGAIN: TransientError,
        errno.EMFILE: TransientError,
        errno.ENFILE: TransientError,
        errno.ENOMEM: TransientError,
        errno.ESTALE: TransientError,
        errno.ETIMEDOUT: TransientError,
    }
)
_HINTS: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOSPC: "free space on the file system",
        errno.EACCES: "see who may read and write here: ls -ld",
        errno.EPERM: "see who may read and write here: ls -ld",
        errno.EROFS: "choose a place that can be written to",
        errno.ENOTDIR: "a part of the path is a file: choose another place",
        errno.EISDIR: "a directory has this name: choose another one",
        errno.EDQUOT: "free space or raise the quota",
        errno.ENAMETOOLONG: "shorten the key: file systems take 255 bytes between two slashes",
    }
)


@contextmanager
def translated(action: str, key: str) -> Iterator[None]:
    """Turn the system's errors into this package's: the only place where that is done."""
    try:
        yield
    except DcpCloudError:
        raise
    except OSError as error:
        number = error.errno or 0
        kind = _ERRNOS.get(number, InvalidRequestError)
        raise kind(f"{action} failed", key=key, cause=error.strerror, hint=_HINTS.get(number)) from error


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Open a file and close it again."""
    fd = os.open(path, flags, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def read_exactly(fd: int, buffers: Buffers, offset: int) -> bool:
    """Fill buffers from an offset on; tell whether the file was long enough."""
    return _move(os.preadv, fd, buffers, offset)


def write_fully(fd: int, buffers: Buffers, offset: int) -> None:
    """Write buffers from an offset on."""
    if not _move(os.pwritev, fd, buffers, offset):
        raise OSError(errno.EIO, "nothing was written")


def copy_bytes(source: int, source_offset: int, target: int, target_offset: int, length: int) -> None:
    """Copy between files."""
    room = memoryview(bytearray(min(length, _COPY_BYTES)))
    for done in range(0, length, _COPY_BYTES):
        piece = room[: min(_COPY_BYTES, length - done)]
        if not read_exactly(source, [piece], source_offset + done):
            raise OSError(errno.EIO, "a part is shorter than its receipt")
        write_fully(target, [piece], target_offset + done)


def settle(fd: int) -> os.stat_result:
    """Make a finished file durable, and its version token one of its own.

    The system's clock for files ticks every few milliseconds; two versions written within a tick could share inode,
    length and time.
    """
    now_ns = time.time_ns()
    os.utime(fd, ns=(now_ns, now_ns))
    os.fsync(fd)
    return os.fstat(fd)


def etag_of(stat: os.stat_result) -> str:
    """Make the version token of a file."""
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"


def describe(key: str, stat: os.stat_result) -> ObjectMeta:
    """Describe a file as an object."""
    return ObjectMeta(
        key=key,
        size_bytes=stat.st_size,
        etag=etag_of(stat),
        modified_at=datetime.fromtimestamp(stat.st_mtime, tz=timezone.utc),
    )


def make_directory(path: str) -> None:
    """Create a directory and what is missing above it, durably."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync_directory(parent)


def nearest_existing(path: str) -> str:
    """Give the path, or what exists of it."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def sync_directory(path: str) -> None:
    """Make renames in a directory durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def _move(move: Callable[[int, list[memoryview], int], int], fd: int, buffers: Buffers, offset: int) -> bool:
    waiting = [buffer for buffer in buffers if len(buffer)]
    first = 0
    while first < len(waiting):
        count = move(fd, waiting[first : first + _MAX_VECTORS], offset)
        if not count:
            return False
        offset += count
        while first < len(waiting) and count >= len(waiting[first]):
            count -= len(waiting[first])
            first += 1
        if count:
            waiting[first] = waiting[first][count:]
    return True
