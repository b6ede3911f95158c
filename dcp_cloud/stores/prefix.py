"""A place inside a store: the same contract with keys relative to a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dcp_cloud.stores.base import (
    Buffers,
    MultipartUpload,
    ObjectData,
    ObjectMeta,
    ObjectStore,
    Part,
    PutCondition,
    StoreLimits,
)
from dcp_cloud.stores.keys import below


@dataclass(frozen=True, slots=True)
class PrefixStore:
    """A store whose root is a prefix of another store. Closing it closes that store's connections.

    Args:
        store: The store.
        prefix: Prefix of whole segments; slashes at its ends do not count.
    """

    store: ObjectStore
    prefix: str

    @property
    def uri(self) -> str:
        """The root as text that may be shown."""
        root, path = self.store.uri, self.prefix.strip("/")
        if not path:
            return root
        return f"{root}{path}" if root.endswith("/") else f"{root}/{path}"

    @property
    def limits(self) -> StoreLimits:
        """The provider's limits."""
        return self.store.limits

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        return self._relative(self.store.head(self._full(key)))

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object."""
        found = self.store.get(self._full(key), max_bytes=max_bytes)
        return ObjectData(meta=self._relative(found.meta), data=found.data)

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers from ``start`` on."""
        self.store.get_range(self._full(key), start, buffers, if_match=if_match)

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """Store a whole object."""
        return self._relative(self.store.put(self._full(key), data, condition=condition, crc32=crc32))

    def create_multipart(self, key: str) -> PrefixUpload:
        """Begin an upload in parts."""
        return PrefixUpload(self.store.create_multipart(self._full(key)), self._start)

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects."""
        self.store.delete([self._full(key) for key in keys], if_match=if_match)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix."""
        return map(self._relative, self.store.list(self._below(prefix)))

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level."""
        return (found[len(self._start) :] for found in self.store.list_prefixes(self._below(prefix)))

    def list_multiparts(self, prefix: str = "") -> Iterator[PrefixUpload]:
        """List unfinished uploads."""
        return (PrefixUpload(upload, self._start) for upload in self.store.list_multiparts(self._below(prefix)))

    def close(self) -> None:
        """Release connections."""
        self.store.close()

    @property
    def _start(self) -> str:
        return below(self.prefix.strip("/"))

    def _full(self, key: str) -> str:
        return self._start + key

    def _below(self, prefix: str) -> str:
        return self._full(prefix) if prefix else self.prefix.strip("/")

    def _relative(self, meta: ObjectMeta) -> ObjectMeta:
        return dataclasses.replace(meta, key=meta.key[len(self._start) :])


@dataclass(frozen=True, slots=True)
class PrefixUpload:
    """An upload whose key is relative to a prefix.

    Args:
        upload: The upload in the store.
        start: What the full key has before the relative one.
    """

    upload: MultipartUpload
    start: str

    @property
    def key(self) -> str:
        """Key of the object to be."""
        return self.upload.key[len(self.start) :]

    @property
    def started_at(self) -> datetime | None:
        """When the upload was begun, if the store tells."""
        return self.upload.started_at

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part."""
        return self.upload.put_part(index, data, crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        return dataclasses.replace(self.upload.complete(parts), key=self.key)

    def abort(self) -> None:
        """Drop the upload and its parts."""
        self.upload.abort()
