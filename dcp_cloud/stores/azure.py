"""``az://container``: Azure Blob Storage and Azurite."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from azure.core import MatchConditions
from azure.storage.blob import BlobPrefix, BlobProperties

from dcp_cloud.errors import (
    BucketNotFoundError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    StoreError,
    TransientError,
)
from dcp_cloud.stores.azure_checksums import checksum_headers
from dcp_cloud.stores.azure_client import AzureClient
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.azure_copy import can_copy, copy_blob
from dcp_cloud.stores.azure_errors import translated
from dcp_cloud.stores.azure_transport import ship
from dcp_cloud.stores.azure_upload import AzureUpload, find_uploads, new_upload_id
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
from dcp_cloud.stores.keys import below, range_beyond_end, total_bytes
from dcp_cloud.stores.server_side import Repeat
from dcp_cloud.stores.wire import WireResponse
from dcp_cloud.uri import StoreURI

_MIB = 1024**2

# Source: https://learn.microsoft.com/rest/api/storageservices/understanding-block-blobs--append-blobs--and-page-blobs
# and https://learn.microsoft.com/azure/storage/blobs/scalability-targets
_LIMITS = StoreLimits(
    min_part_bytes=1,
    max_part_bytes=4000 * _MIB,
    max_parts=50_000,
    max_put_bytes=5000 * _MIB,
    max_object_bytes=50_000 * 4000 * _MIB,
)

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")


@dataclass(frozen=True, slots=True)
class AzureStore:
    """Objects in a container.

    Args:
        client: The container's client.
    """

    client: AzureClient

    @property
    def uri(self) -> str:
        """The root as text that may be shown."""
        return self.client.uri.root

    @property
    def limits(self) -> StoreLimits:
        """Azure's limits."""
        return _LIMITS

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        with self._translated("get_blob_properties", key):
            found = self.client.blob(key).get_blob_properties(**ship(key), **self.client.encryption())
        if _is_folder(found):
            raise NotFoundError("it is a directory, not an object", key=key)
        return _meta(found)

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object."""
        arrival = _Beginning(key, max_bytes)
        try:
            meta = self._download(key, 0, max_bytes, ship(key, receive=arrival.receive))
        except InvalidRequestError:
            meta = self.head(key)
            if meta.size_bytes:
                raise
            return ObjectData(meta=meta, data=b"")  # an empty object has no range at all
        return ObjectData(meta=replace(meta, size_bytes=arrival.size_bytes), data=arrival.data)

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers from ``start`` on."""
        length = total_bytes(buffers)

        def receive(response: WireResponse) -> None:
            first, end, size_bytes = _arriving_range(response)
            if first != start or end > start + length:
                raise TransientError("the answer is another range", key=key)
            if end < start + length:
                raise range_beyond_end(key, start, length, size_bytes)
            response.read_into(buffers)

        self._download(key, start, length, ship(key, receive=receive), **_matching(if_match))

    def put(
        self,
        key: str,
        data: Buffers,
        *,
        condition: PutCondition | None = None,
        crc32: int | None = None,  # noqa: ARG002 - the service verifies other checksums
    ) -> ObjectMeta:
        """Store a whole object."""
        length = total_bytes(data)
        arguments: dict[str, Any] = self.client.creating()
        if isinstance(condition, IfMatch):
            arguments |= _matching(condition.etag)
        # Sent twice, a conditional write would find its own object.
        freight = ship(key, body=data, replay=condition is None)
        try:
            with self._translated("put_blob", key):
                answer = self.client.blob(key).upload_blob(
                    b"",
                    length=length,
                    overwrite=not isinstance(condition, IfAbsent),
                    headers=checksum_headers(data, self.client.config.checksums),
                    **freight,
                    **arguments,
                )
        except NotFoundError as error:
            if isinstance(condition, IfMatch) and not isinstance(error, BucketNotFoundError):
                raise PreconditionError("the object is gone", key=key, cause=error.cause) from error
            raise
        return _written(key, length, answer)

    def create_multipart(self, key: str) -> AzureUpload:
        """Begin an upload in parts."""
        upload = AzureUpload(self.client, key, new_upload_id())
        upload.begin()
        return upload

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects, one by one; a transient failure leaves the rest to whoever repeats the call.

        The SDK's batches start threads for each, and each of those can leave a file open (libuuid's clock.txt).
        """
        failure: StoreError | None = None
        for key in keys:
            try:
                self._delete(key, if_match)
            except TransientError:
                raise
            except StoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix."""
        return (_meta(found) for found in self._list(prefix, include=["metadata"]) if not _is_folder(found))

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level. On an account with hierarchical namespace, empty directories too."""
        with self._translated("list_blobs", prefix):
            found = self.client.container.walk_blobs(below(prefix) or None, delimiter="/", **ship(prefix))
            for item in found:
                if isinstance(item, BlobPrefix):
                    yield item.name.removesuffix("/")

    def list_multiparts(self, prefix: str = "") -> Iterator[AzureUpload]:
        """List unfinished uploads of this package, except those for keys that have an object already."""
        # With metadata, which tells directories: they have no blocks, and asking for them is an error.
        for found in self._list(prefix, include=["metadata", "uncommittedblobs"]):
            # The listing does not tell uncommitted blobs from empty ones.
            if not found.size and not _is_folder(found):
                yield from find_uploads(self.client, found.name)

    def close(self) -> None:
        """Release connections."""
        self.client.close()

    def copies_from(self, source: ObjectStore) -> bool:
        """Tell whether Azure could copy from there."""
        return isinstance(source, AzureStore) and can_copy(source.client, self.client)

    def copy_from(self, source: ObjectStore, meta: ObjectMeta, key: str, repeat: Repeat) -> None:
        """Copy an object."""
        assert isinstance(source, AzureStore)  # noqa: S101 - copies_from was asked
        copy_blob(source.client, self.client, meta, key, repeat)

    def _translated(self, operation: str, key: str) -> Any:  # noqa: ANN401 - a context manager
        return translated(f"{operation} on {self.uri}", key=key or None)

    def _download(self, key: str, start: int, length: int, freight: dict[str, Any], **condition: object) -> ObjectMeta:
        with self._translated("get_blob", key):
            blob, encryption = self.client.blob(key), self.client.encryption()
            found = blob.download_blob(offset=start, length=length, **freight, **encryption, **condition)
        return _meta(found.properties)

    def _list(self, prefix: str, *, include: builtins.list[str]) -> Iterator[BlobProperties]:
        with self._translated("list_blobs", prefix):
            start = below(prefix)
            for found in self.client.container.list_blobs(start or None, include=include, **ship(prefix)):
                if found.name != start:
                    yield found

    def _delete(self, key: str, if_match: str | None) -> None:
        try:
            with self._translated("delete_blob", key):
                self.client.blob(key).delete_blob(**ship(key), **_matching(if_match))
        except BucketNotFoundError:
            raise
        except NotFoundError:
            return
        except PreconditionError:
            if self._is_there(key):  # a blob that is gone meets no condition either
                raise

    def _is_there(self, key: str) -> bool:
        try:
            self.head(key)
        except BucketNotFoundError:
            raise
        except NotFoundError:
            return False
        return True


@dataclass(slots=True)
class _Beginning:
    """What arrives of an object's beginning."""

    key: str
    max_bytes: int
    size_bytes: int = 0
    data: bytes = b""

    def receive(self, response: WireResponse) -> None:
        first, end, self.size_bytes = _arriving_range(response)
        if first or end != min(self.max_bytes, self.size_bytes):
            raise TransientError("the answer is another range", key=self.key)
        self.data = response.read(end)


def open_azure(uri: StoreURI, config: AzureConfig) -> ObjectStore:
    """Open the container that an ``az://`` URI names."""
    return AzureStore(AzureClient(uri.at(""), config))


def _arriving_range(response: WireResponse) -> tuple[int, int, int]:
    """Tell where the body of an answer begins and ends, and how long the object is."""
    found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if response.status != 206 or found is None:
        raise InvalidRequestError("the server does not answer ranges", key=response.key)
    return int(found[1]), int(found[2]) + 1, int(found[3])


def _matching(etag: str | None) -> dict[str, Any]:
    return {} if etag is None else {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}


def _is_folder(found: BlobProperties) -> bool:
    # With hierarchical namespace, directories are listed as empty blobs with this mark. Source:
    # https://learn.microsoft.com/rest/api/storageservices/list-blobs
    metadata = found.metadata or {}
    return not found.size and any(name.lower() == "hdi_isfolder" and metadata[name] == "true" for name in metadata)


def _meta(found: BlobProperties) -> ObjectMeta:
    return ObjectMeta(
        key=found.name, size_bytes=found.size, etag=found.etag.strip('"'), modified_at=found.last_modified
    )


def _written(key: str, size_bytes: int, answer: dict[str, Any]) -> ObjectMeta:
    return ObjectMeta(
        key=key, size_bytes=size_bytes, etag=answer["etag"].strip('"'), modified_at=answer.get("last_modified")
    )
