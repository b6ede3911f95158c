"""The store contract: what the package needs of an object store, and all that a new store has to implement.

The rules, each proved by a test of the conformance suite in ``tests/conformance``:

* Keys are relative to the store's root and have no leading slash. A store never sees a URI after it was opened.
* Ranges are half-open and exact: fewer bytes than asked for is an error, never a short buffer.
* Data is scatter-gather: what is sent comes as a sequence of buffers, what is read lands in a sequence of writable
  buffers. A store that must copy may; the contract does not force it.
* ``put`` is atomic, and with a condition it has exactly one winner.
* Parts have 0-based indices and come in any order, from any thread; sending an index again replaces it. Nothing is
  visible before ``complete``, nothing is left after ``abort``. The caller keeps what ``put_part`` returns, so an
  upload has no state of its own.
* ``delete`` of a missing key succeeds, with a condition too.
* ``list`` is recursive, in no promised order; the prefix matches whole segments: ``a/b`` lists ``a/b/c`` but neither
  ``a/bc`` nor the object ``a/b``.
* Stores and uploads are safe to use from many threads and pickle as configuration: no client, no credential.
* A store tries once. It raises nothing but ``dcp_cloud.errors``, and :class:`~dcp_cloud.errors.TransientError`
  exactly when the same request may succeed later; retrying is the transfer layer's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

Buffers: TypeAlias = Sequence[memoryview]
"""Bytes to send or room to fill: C-contiguous one-dimensional memoryviews of format ``B``, empty ones allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMeta:
    """What a store knows of an object.

    Args:
        key: Key relative to the store's root.
        size_bytes: Length of the object.
        etag: Version token, opaque; differs whenever the content differs. On S3 equal content may have equal tokens.
        modified_at: When it was written, with time zone, if the store tells.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectData:
    """The beginning of an object, read in one request together with what the store knows of it.

    Args:
        meta: The object's description; ``meta.size_bytes`` is its whole length.
        data: Its first bytes, all of them if the object is not longer than was asked for.
    """

    meta: ObjectMeta
    data: bytes


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Write only if there is no object of this key."""


@dataclass(frozen=True, slots=True)
class IfMatch:
    """Write only if the object is still this version.

    Args:
        etag: The version token that ``head``, ``get`` or ``put`` returned.
    """

    etag: str


PutCondition: TypeAlias = IfAbsent | IfMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """The provider's limits, each stated once, beside its source in the store's file.

    Args:
        min_part_bytes: Shortest part but the last, bytes.
        max_part_bytes: Longest part, bytes.
        max_parts: Most parts of one object.
        max_put_bytes: Longest object that a single ``put`` takes, bytes.
        max_object_bytes: Longest object, bytes.
    """

    min_part_bytes: int
    max_part_bytes: int
    max_parts: int
    max_put_bytes: int
    max_object_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stored part of an unfinished upload.

    Args:
        index: 0-based position in the object.
        token: What the provider wants back at completion (ETag, block id, piece name).
        size_bytes: Length.
        crc32: CRC-32 (zlib) of the bytes, if it was given with the part.
    """

    index: int
    token: str
    size_bytes: int
    crc32: int | None = None


@runtime_checkable
class MultipartUpload(Protocol):
    """One unfinished upload. Frozen: everything that changes is kept by the caller or by the provider."""

    @property
    def key(self) -> str:
        """Key of the object to be."""
        ...

    @property
    def started_at(self) -> datetime | None:
        """When the upload was begun, with time zone, if the store tells; for finding stale ones."""
        ...

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part.

        Args:
            index: 0-based position; an index sent before is replaced.
            data: The part's bytes, in order. Not empty in total.
            crc32: CRC-32 (zlib) of the bytes. A store whose provider verifies it passes it on.

        Returns:
            The receipt that ``complete`` needs.

        Raises:
            NotFoundError: The upload was completed or aborted.
            TransientError: The request may be repeated.
            StoreError: The provider refused.
        """
        ...

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible, whole, at once.

        Args:
            parts: The receipts of all parts, at least one, with indices ``0..n-1`` in order.

        Returns:
            The new object.

        Raises:
            NotFoundError: The upload was aborted or completed before; some providers answer a repeated completion
                with the object instead.
            InvalidRequestError: A part is missing or is not the one that was stored.
            TransientError: The request may be repeated; whether it took effect is not known.
        """
        ...

    def abort(self) -> None:
        """Drop the upload and its parts. Aborting twice, or after completion, does nothing.

        Raises:
            TransientError: The request may be repeated.
        """
        ...


@runtime_checkable
class ObjectStore(Protocol):
    """A place for objects: a bucket, a container, a directory."""

    @property
    def uri(self) -> str:
        """The root as text that may be shown: no options, no secrets."""
        ...

    @property
    def limits(self) -> StoreLimits:
        """The provider's limits."""
        ...

    def head(self, key: str) -> ObjectMeta:
        """Describe an object.

        Args:
            key: Key of the object.

        Raises:
            NotFoundError: There is none (``BucketNotFoundError``: the bucket itself is missing).
        """
        ...

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object and its description in one request.

        Args:
            key: Key of the object.
            max_bytes: At most so many bytes from the start, at least 1.

        Raises:
            NotFoundError: There is no such object.
        """
        ...

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers, one after the other, with the bytes from ``start`` on.

        Args:
            key: Key of the object.
            start: Offset of the first byte.
            buffers: Writable buffers; the range's length is the sum of theirs, at least 1. After an error their
                content is undefined.
            if_match: Version token that the object must still have.

        Raises:
            NotFoundError: There is no such object.
            PreconditionError: The object is another version than ``if_match``.
            OutOfRangeError: The object ends before the range does.
        """
        ...

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """Store a whole object in one atomic request.

        Args:
            key: Key of the object.
            data: Its bytes, in order; may be empty. At most ``limits.max_put_bytes`` in all.
            condition: Write only under this condition; of several at once exactly one wins.
            crc32: CRC-32 (zlib) of the bytes. A store whose provider verifies it passes it on.

        Raises:
            AlreadyExistsError: ``IfAbsent``, and there is an object.
            PreconditionError: ``IfMatch``, and the object is another version or gone.
            TransientError: The request may be repeated; whether it took effect is not known.
        """
        ...

    def create_multipart(self, key: str) -> MultipartUpload:
        """Begin an upload in parts.

        Args:
            key: Key of the object to be; an object that is there stays until ``complete``.
        """
        ...

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects; missing ones count as deleted.

        Args:
            keys: Any number of keys; the store batches them.
            if_match: Version token that the object must still have; then there is exactly one key.

        Raises:
            PreconditionError: The object is another version than ``if_match``; it stays.
            StoreError: At least one key could not be deleted; the error names the first one. The others were tried.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix, in no promised order.

        Args:
            prefix: Whole key segments, without a trailing slash; empty for all.
        """
        ...

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level below a prefix that have objects below them ("sub-directories").

        Args:
            prefix: As in ``list``.

        Yields:
            The full prefix of each (``prefix/name``), once, without a trailing slash.
        """
        ...

    def list_multiparts(self, prefix: str = "") -> Iterator[MultipartUpload]:
        """List unfinished uploads below a prefix, as far as the provider can tell.

        Args:
            prefix: As in ``list``.
        """
        ...

    def close(self) -> None:
        """Release connections. The store may be used again; it connects anew."""
        ...
