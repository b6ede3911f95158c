"""A store that tries again.

Stores try once. This wrapper repeats what may pass, and answers the question that a repeated write raises: when the
reply to the first try was lost, did that try take effect?

* A conditional ``put`` that is refused on a later try: if the object holds exactly our bytes, our first try wrote it.
* A ``complete`` that no longer finds its upload on a later try: if the object is there with our length, our first try
  completed it. (Data objects carry the id of their save, so nobody else writes that key.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dcp_cloud.errors import AlreadyExistsError, NotFoundError, PreconditionError
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
from dcp_cloud.transfer.retry import Retrier


@dataclass(frozen=True, slots=True)
class RetryingStore:
    """Wraps a store; same contract, fewer failures.

    Args:
        store: The store that tries once.
        retrier: How often and how long to repeat.
    """

    store: ObjectStore
    retrier: Retrier

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
        return self.retrier.call(lambda: self.store.head(key), verb="head", key=key)

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """See :meth:`ObjectStore.get`."""
        return self.retrier.call(lambda: self.store.get(key, max_bytes=max_bytes), verb="get", key=key)

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """See :meth:`ObjectStore.get_range`."""
        self.retrier.call(
            lambda: self.store.get_range(key, start, buffers, if_match=if_match),
            verb="get_range",
            key=key,
            size_bytes=total_bytes(buffers),
        )

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """See :meth:`ObjectStore.put`."""
        tries = 0

        def request() -> ObjectMeta:
            nonlocal tries
            tries += 1
            try:
                return self.store.put(key, data, condition=condition, crc32=crc32)
            except (AlreadyExistsError, PreconditionError):
                if tries > 1 and (written := self._written(key, data)) is not None:
                    return written
                raise

        return self.retrier.call(request, verb="put", key=key, size_bytes=total_bytes(data))

    def create_multipart(self, key: str) -> RetryingUpload:
        """See :meth:`ObjectStore.create_multipart`."""
        upload = self.retrier.call(lambda: self.store.create_multipart(key), verb="create_multipart", key=key)
        return RetryingUpload(upload, self.store, self.retrier)

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """See :meth:`ObjectStore.delete`. A try whose answer was lost leaves a missing key, which counts as deleted."""
        self.retrier.call(
            lambda: self.store.delete(keys, if_match=if_match), verb="delete", key=keys[0] if keys else ""
        )

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """See :meth:`ObjectStore.list`. The listing is taken whole, since half a listing cannot be repeated."""
        yield from self.retrier.call(lambda: tuple(self.store.list(prefix)), verb="list", key=prefix)

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """See :meth:`ObjectStore.list_prefixes`."""
        yield from self.retrier.call(lambda: tuple(self.store.list_prefixes(prefix)), verb="list_prefixes", key=prefix)

    def list_multiparts(self, prefix: str = "") -> Iterator[RetryingUpload]:
        """See :meth:`ObjectStore.list_multiparts`."""
        uploads = self.retrier.call(
            lambda: tuple(self.store.list_multiparts(prefix)), verb="list_multiparts", key=prefix
        )
        for upload in uploads:
            yield RetryingUpload(upload, self.store, self.retrier)

    def close(self) -> None:
        """See :meth:`ObjectStore.close`."""
        self.store.close()

    def _written(self, key: str, data: Buffers) -> ObjectMeta | None:
        """Describe the object if it holds exactly these bytes."""
        size_bytes = total_bytes(data)
        try:
            found = self.store.get(key, max_bytes=size_bytes + 1)
        except NotFoundError:
            return None
        if found.meta.size_bytes != size_bytes:
            return None
        rest = memoryview(found.data)
        for buffer in data:
            if rest[: buffer.nbytes] != buffer:
                return None
            rest = rest[buffer.nbytes :]
        return found.meta


@dataclass(frozen=True, slots=True)
class RetryingUpload:
    """Wraps an upload; same contract, fewer failures.

    Args:
        upload: The upload that tries once.
        store: Its store, to look whether a lost completion took effect.
        retrier: How often and how long to repeat.
    """

    upload: MultipartUpload
    store: ObjectStore
    retrier: Retrier

    @property
    def key(self) -> str:
        """Key of the object to be."""
        return self.upload.key

    @property
    def started_at(self) -> datetime | None:
        """When the upload was begun."""
        return self.upload.started_at

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """See :meth:`MultipartUpload.put_part`."""
        return self.retrier.call(
            lambda: self.upload.put_part(index, data, crc32=crc32),
            verb="put_part",
            key=self.key,
            size_bytes=total_bytes(data),
        )

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """See :meth:`MultipartUpload.complete`."""
        tries = 0

        def request() -> ObjectMeta:
            nonlocal tries
            tries += 1
            try:
                return self.upload.complete(parts)
            except NotFoundError as lost:
                if tries > 1 and (written := self._completed(parts)) is not None:
                    return written
                raise lost from None

        return self.retrier.call(request, verb="complete", key=self.key)

    def abort(self) -> None:
        """See :meth:`MultipartUpload.abort`."""
        self.retrier.call(self.upload.abort, verb="abort", key=self.key)

    def _completed(self, parts: Sequence[Part]) -> ObjectMeta | None:
        try:
            found = self.store.head(self.key)
        except NotFoundError:
            return None
        return found if found.size_bytes == sum(part.size_bytes for part in parts) else None


def total_bytes(buffers: Buffers) -> int:
    """Add up the lengths of buffers."""
    return sum(buffer.nbytes for buffer in buffers)
