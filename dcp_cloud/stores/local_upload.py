"""Uploads in parts to the local store.

An upload is a hidden directory beside the object's place. Parts are written to a file that is called by the part's
length, at ``index * length``: parts of one length lie in one file, each at its final place, whatever order they come
in, and only the last, shorter one must be moved when the upload is completed. A receipt file for each part tells which
writing of it was the last.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone

from dcp_cloud.errors import InvalidRequestError, NotFoundError
from dcp_cloud.stores.base import Buffers, ObjectMeta, Part
from dcp_cloud.stores.keys import OWN_PREFIX, check_crc32, check_indices, total_bytes
from dcp_cloud.stores.local_files import copy_bytes, describe, opened, settle, sync_directory, translated, write_fully

UPLOAD_PREFIX = f"{OWN_PREFIX}upload-"
_NAME_FILE = "name"


@dataclass(frozen=True, slots=True)
class LocalUpload:
    """An unfinished upload.

    Args:
        directory: Its hidden directory.
        key: Key of the object to be.
        started_at: When it was begun.
    """

    directory: str
    key: str
    started_at: datetime | None

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part."""
        check_crc32(data, crc32, key=self.key)
        size_bytes, token = total_bytes(data), uuid.uuid4().hex
        with translated("put_part", self.key):
            self._require()
            with opened(self._data(size_bytes), os.O_WRONLY | os.O_CREAT) as fd:
                write_fully(fd, data, index * size_bytes)
            with opened(self._receipt(index), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
                os.write(fd, token.encode())
        return Part(index=index, token=token, size_bytes=size_bytes, crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        check_indices(parts, key=self.key)
        parent = os.path.dirname(self.directory)
        with translated("complete", self.key):
            self._require()
            for part in parts:
                self._check_receipt(part)
            whole = self._assemble(parts)
            with opened(whole, os.O_RDWR) as fd:
                os.ftruncate(fd, sum(part.size_bytes for part in parts))
                stat = settle(fd)
            os.replace(whole, os.path.join(parent, self.key.rpartition("/")[2]))
            sync_directory(parent)
        self.abort()
        return describe(self.key, stat)

    def abort(self) -> None:
        """Drop the upload and its parts."""
        # Renamed first: a part that is still being written finds nothing, instead of filling what is being removed.
        dropped = os.path.join(os.path.dirname(self.directory), f"{UPLOAD_PREFIX}{uuid.uuid4().hex}")
        with translated("abort", self.key), suppress(FileNotFoundError):
            os.rename(self.directory, dropped)
            shutil.rmtree(dropped)

    def _assemble(self, parts: Sequence[Part]) -> str:
        """Bring all parts into one file and give its path."""
        size_bytes = parts[0].size_bytes
        whole = self._data(size_bytes)
        moved = [part for part in parts if part.size_bytes != size_bytes]
        if moved and moved != [parts[-1]]:
            # Parts of many lengths overlap each other's places: they are laid into a fresh file.
            whole, moved = os.path.join(self.directory, "whole"), list(parts)
        offset = 0
        with opened(whole, os.O_WRONLY | os.O_CREAT) as target:
            for part in parts:
                if part in moved:
                    with opened(self._data(part.size_bytes), os.O_RDONLY) as source:
                        copy_bytes(source, part.index * part.size_bytes, target, offset, part.size_bytes)
                offset += part.size_bytes
        return whole

    def _check_receipt(self, part: Part) -> None:
        try:
            with opened(self._receipt(part.index), os.O_RDONLY) as fd:
                token = os.read(fd, 64).decode()
        except FileNotFoundError:
            token = ""
        if token != part.token:
            raise InvalidRequestError(f"part {part.index} is missing or was replaced", key=self.key)

    def _require(self) -> None:
        if not os.path.isdir(self.directory):
            raise NotFoundError("the upload was completed or aborted", key=self.key)

    def _data(self, size_bytes: int) -> str:
        return os.path.join(self.directory, f"data-{size_bytes}")

    def _receipt(self, index: int) -> str:
        return os.path.join(self.directory, f"part-{index}")


def create_upload(place: str, key: str) -> LocalUpload:
    """Begin an upload of the object that will stand at a place."""
    parent, _, name = place.rpartition("/")
    directory = os.path.join(parent, f"{UPLOAD_PREFIX}{uuid.uuid4().hex}")
    os.mkdir(directory)
    with opened(os.path.join(directory, _NAME_FILE), os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, os.fsencode(name))
        started_at = datetime.fromtimestamp(os.fstat(fd).st_mtime, tz=timezone.utc)
    return LocalUpload(directory, key, started_at)


def find_upload(directory: str, prefix: str) -> LocalUpload | None:
    """Read an upload back from its directory; None if there is none, or no longer."""
    try:
        with opened(os.path.join(directory, _NAME_FILE), os.O_RDONLY) as fd:
            name, stat = os.fsdecode(os.read(fd, 4096)), os.fstat(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    key = f"{prefix}/{name}" if prefix else name
    return LocalUpload(directory, key, datetime.fromtimestamp(stat.st_mtime, tz=timezone.utc))
