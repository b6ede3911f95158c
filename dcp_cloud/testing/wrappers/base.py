"""A store around a store: every request of the contract passes through one method."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

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
from dcp_cloud.stores.keys import total_bytes

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a store.

    Args:
        verb: Method of the store or of the upload: ``put_part``, ``get_range``, ``head`` …
        key: Key it concerns, the first one of a ``delete``, the prefix of a listing.
        start: Offset of a ``get_range``.
        index: Index of a ``put_part``.
        size_bytes: Bytes that it sends or asks for.
        room: What a ``get_range`` fills.
    """

    verb: str
    key: str
    start: int = 0
    index: int = 0
    size_bytes: int = 0
    room: Buffers = ()


class StoreWrapper:
    """Forwards every request to a store; subclasses say in :meth:`around` what happens before and after.

    Listings are taken whole before they are handed on. ``close``, ``uri`` and ``limits`` are no requests. A wrapper
    pickles where its store does.

    Args:
        store: The wrapped store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def around(self, request: Request, run: Callable[[], ResultT]) -> ResultT:
        """Make one request.

        Args:
            request: What is asked of the store.
            run: Asks the wrapped store; may be called any number of times.

        Returns:
            The answer.
        """
        raise NotImplementedError

    @property
    def uri(self) -> str:
        """The wrapped store's root."""
        return self.store.uri

    @property
    def limits(self) -> StoreLimits:
        """The wrapped store's limits."""
        return self.store.limits

    def head(self, key: str) -> ObjectMeta:
        """See :meth:`ObjectStore.head`."""
        return self.around(Request(verb="head", key=key), lambda: self.store.head(key))

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """See :meth:`ObjectStore.get`."""
        request = Request(verb="get", key=key, size_bytes=max_bytes)
        return self.around(request, lambda: self.store.get(key, max_bytes=max_bytes))

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """See :meth:`ObjectStore.get_range`."""
        request = Request(verb="get_range", key=key, start=start, size_bytes=total_bytes(buffers), room=buffers)
        self.around(request, lambda: self.store.get_range(key, start, buffers, if_match=if_match))

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """See :meth:`ObjectStore.put`."""
        request = Request(verb="put", key=key, size_bytes=total_bytes(data))
        return self.around(request, lambda: self.store.put(key, data, condition=condition, crc32=crc32))

    def create_multipart(self, key: str) -> WrappedUpload:
        """See :meth:`ObjectStore.create_multipart`."""
        request = Request(verb="create_multipart", key=key)
        return WrappedUpload(self, self.around(request, lambda: self.store.create_multipart(key)))

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """See :meth:`ObjectStore.delete`."""
        request = Request(verb="delete", key=keys[0] if keys else "")
        self.around(request, lambda: self.store.delete(keys, if_match=if_match))

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """See :meth:`ObjectStore.list`."""
        request = Request(verb="list", key=prefix)
        return iter(self.around(request, lambda: builtins.list(self.store.list(prefix))))

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """See :meth:`ObjectStore.list_prefixes`."""
        request = Request(verb="list_prefixes", key=prefix)
        return iter(self.around(request, lambda: builtins.list(self.store.list_prefixes(prefix))))

    def list_multiparts(self, prefix: str = "") -> Iterator[WrappedUpload]:
        """See :meth:`ObjectStore.list_multiparts`."""
        request = Request(verb="list_multiparts", key=prefix)
        found = self.around(request, lambda: builtins.list(self.store.list_multiparts(prefix)))
        return (WrappedUpload(self, upload) for upload in found)

    def close(self) -> None:
        """See :meth:`ObjectStore.close`."""
        self.store.close()


@dataclass(frozen=True, slots=True)
class WrappedUpload:
    """An upload whose requests pass through the wrapper that began it.

    Args:
        wrapper: The wrapper.
        upload: The upload of the wrapped store.
    """

    wrapper: StoreWrapper
    upload: MultipartUpload

    @property
    def key(self) -> str:
        """Key of the object to be."""
        return self.upload.key

    @property
    def started_at(self) -> datetime | None:
        """When the upload was begun, if the store tells."""
        return self.upload.started_at

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """See :meth:`MultipartUpload.put_part`."""
        request = Request(verb="put_part", key=self.key, index=index, size_bytes=total_bytes(data))
        return self.wrapper.around(request, lambda: self.upload.put_part(index, data, crc32=crc32))

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """See :meth:`MultipartUpload.complete`."""
        return self.wrapper.around(Request(verb="complete", key=self.key), lambda: self.upload.complete(parts))

    def abort(self) -> None:
        """See :meth:`MultipartUpload.abort`."""
        self.wrapper.around(Request(verb="abort", key=self.key), self.upload.abort)
