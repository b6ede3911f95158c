"""``memory://name``: objects in this process, and the reference for what the contract means."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from dcp_cloud.errors import AlreadyExistsError, InvalidRequestError, NotFoundError, PreconditionError
from dcp_cloud.stores.base import (
    Buffers,
    IfAbsent,
    IfMatch,
    ObjectData,
    ObjectMeta,
    ObjectStore,
    Part,
    PutCondition,
    StoreLimits,
)
from dcp_cloud.stores.keys import below, check_crc32, check_indices, next_level, range_beyond_end
from dcp_cloud.uri import StoreURI

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    meta: ObjectMeta


@dataclass(frozen=True, slots=True)
class _Parts:
    key: str
    started_at: datetime
    stored: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Bucket:
    objects: dict[str, _Object] = field(default_factory=dict)
    uploads: dict[str, _Parts] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


# The one registry of the package: two stores opened by the same name must see the same objects, also after pickling,
# and nothing but the process itself can hold what they share.
_BUCKETS: dict[str, _Bucket] = {}


class MemoryStore:
    """Objects in the memory of this process, shared by all stores of one name.

    Args:
        name: Name of the bucket; it is created when first used.
        limits: Limits to enforce; tests make them small.
    """

    def __init__(self, name: str, *, limits: StoreLimits | None = None) -> None:
        self._name = name
        self._limits = limits or StoreLimits(
            min_part_bytes=1,
            max_part_bytes=_GIB,
            max_parts=10_000,
            max_put_bytes=_GIB,
            max_object_bytes=10_000 * _GIB,
        )

    def __reduce__(self) -> tuple[object, tuple[str, StoreLimits]]:
        return _reopen, (self._name, self._limits)

    @property
    def uri(self) -> str:
        """The root as text that may be shown."""
        return f"memory://{self._name}"

    @property
    def limits(self) -> StoreLimits:
        """The limits in force."""
        return self._limits

    @property
    def _bucket(self) -> _Bucket:
        return _BUCKETS.setdefault(self._name, _Bucket())

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        return self._find(key).meta

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object."""
        found = self._find(key)
        return ObjectData(meta=found.meta, data=found.data[:max_bytes])

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers from ``start`` on."""
        found = self._find(key)
        if if_match is not None and found.meta.etag != if_match:
            raise PreconditionError("the object is another version", key=key)
        length = sum(map(len, buffers))
        if start + length > len(found.data):
            raise range_beyond_end(key, start, length, len(found.data))
        data = memoryview(found.data)
        for buffer in buffers:
            buffer[:] = data[start : start + len(buffer)]
            start += len(buffer)

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """Store a whole object."""
        check_crc32(data, crc32, key=key)
        content = b"".join(data)
        if len(content) > self._limits.max_put_bytes:
            raise InvalidRequestError("the object is too long for one request", key=key)
        return self._publish(key, content, condition)

    def create_multipart(self, key: str) -> MemoryUpload:
        """Begin an upload in parts."""
        upload = MemoryUpload(self, key, uuid.uuid4().hex, datetime.now(timezone.utc))
        self._bucket.uploads[upload.upload_id] = _Parts(key, upload.started_at)
        return upload

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects."""
        with self._bucket.lock:
            for key in keys:
                present = self._bucket.objects.get(key)
                if present is not None and if_match not in (None, present.meta.etag):
                    raise PreconditionError("the object is another version", key=key)
                self._bucket.objects.pop(key, None)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix."""
        start = below(prefix)
        with self._bucket.lock:
            found = [stored.meta for key, stored in self._bucket.objects.items() if key.startswith(start)]
        return iter(found)

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level."""
        return next_level((meta.key for meta in self.list(prefix)), prefix)

    def list_multiparts(self, prefix: str = "") -> Iterator[MemoryUpload]:
        """List unfinished uploads."""
        for upload_id, parts in list(self._bucket.uploads.items()):
            if parts.key.startswith(below(prefix)):
                yield MemoryUpload(self, parts.key, upload_id, parts.started_at)

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def _find(self, key: str) -> _Object:
        found = self._bucket.objects.get(key)
        if found is None:
            raise NotFoundError("no such object", key=key)
        return found

    def _publish(self, key: str, content: bytes, condition: PutCondition | None) -> ObjectMeta:
        meta = ObjectMeta(
            key=key, size_bytes=len(content), etag=uuid.uuid4().hex, modified_at=datetime.now(timezone.utc)
        )
        with self._bucket.lock:
            present = self._bucket.objects.get(key)
            if isinstance(condition, IfAbsent) and present is not None:
                raise AlreadyExistsError("the object is already there", key=key)
            if isinstance(condition, IfMatch) and (present is None or present.meta.etag != condition.etag):
                raise PreconditionError("the object is another version or gone", key=key)
            self._bucket.objects[key] = _Object(content, meta)
        return meta


@dataclass(frozen=True, slots=True)
class MemoryUpload:
    """An unfinished upload to a :class:`MemoryStore`.

    Args:
        store: The store it belongs to.
        key: Key of the object to be.
        upload_id: Its name among the store's uploads.
        started_at: When it was begun.
    """

    store: MemoryStore
    key: str
    upload_id: str
    started_at: datetime

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part."""
        check_crc32(data, crc32, key=self.key)
        token, content = uuid.uuid4().hex, b"".join(data)
        self._parts().stored[index] = (token, content)
        return Part(index=index, token=token, size_bytes=len(content), crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        check_indices(parts, key=self.key)
        stored = self._parts().stored
        contents: list[bytes] = []
        for part in parts:
            token, content = stored.get(part.index, ("", b""))
            if token != part.token:
                raise InvalidRequestError(f"part {part.index} is missing or was replaced", key=self.key)
            if len(content) < self.store.limits.min_part_bytes and part is not parts[-1]:
                raise InvalidRequestError(f"part {part.index} is shorter than the store allows", key=self.key)
            contents.append(content)
        if self.store._bucket.uploads.pop(self.upload_id, None) is None:
            raise self._gone()
        return self.store._publish(self.key, b"".join(contents), None)

    def abort(self) -> None:
        """Drop the upload and its parts."""
        self.store._bucket.uploads.pop(self.upload_id, None)

    def _parts(self) -> _Parts:
        parts = self.store._bucket.uploads.get(self.upload_id)
        if parts is None:
            raise self._gone()
        return parts

    def _gone(self) -> NotFoundError:
        return NotFoundError("the upload was completed or aborted", key=self.key)


def open_memory(uri: StoreURI, config: None) -> ObjectStore:  # noqa: ARG001 - every loader takes a configuration
    """Open the bucket that a ``memory://`` URI names."""
    return MemoryStore(uri.bucket)


def _reopen(name: str, limits: StoreLimits) -> MemoryStore:
    return MemoryStore(name, limits=limits)
