"""``gs://bucket``: Google Cloud Storage."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from dcp_cloud.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    TransientError,
)
from dcp_cloud.stores.base import (
    Buffers,
    IfAbsent,
    IfMatch,
    MultipartUpload,
    ObjectData,
    ObjectMeta,
    ObjectStore,
    PutCondition,
    StoreLimits,
)
from dcp_cloud.stores.gcs_checksum import check_crc32c, crc32c_from_headers, crc32c_of
from dcp_cloud.stores.gcs_client import GCSClient, Query
from dcp_cloud.stores.gcs_compose import PIECES, ComposeUpload
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.gcs_multipart import XMLUpload
from dcp_cloud.stores.gcs_objects import GCSObjects, meta_of
from dcp_cloud.stores.keys import below, range_beyond_end, total_bytes
from dcp_cloud.stores.server_side import Repeat
from dcp_cloud.stores.wire import WireResponse
from dcp_cloud.uri import StoreURI

_MIB = 1024**2
_GIB = 1024**3
_TIB = 1024**4

# Source: https://docs.cloud.google.com/storage/quotas (object size; XML API multipart uploads)
_XML_LIMITS = StoreLimits(
    min_part_bytes=5 * _MIB,
    max_part_bytes=5 * _GIB,
    max_parts=10_000,
    max_put_bytes=5 * _TIB,
    max_object_bytes=5 * _TIB,
)
# Pieces are objects, so they have an object's limits; their number is ours, for the sake of one rule for both ways.
_COMPOSE_LIMITS = dataclasses.replace(_XML_LIMITS, min_part_bytes=1, max_part_bytes=5 * _TIB)

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")
_GENERATION = re.compile(r"[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class GCSStore:
    """Objects in a bucket. An object's version token is its generation.

    Args:
        objects: The bucket's objects.
    """

    objects: GCSObjects

    @property
    def uri(self) -> str:
        """The root as text that may be shown."""
        return self._client.uri

    @property
    def limits(self) -> StoreLimits:
        """Google's limits for the configured way of uploading."""
        return _COMPOSE_LIMITS if self._composes else _XML_LIMITS

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        return meta_of(self.objects.describe(key))

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object."""
        response = self._download(key, f"bytes=0-{max_bytes - 1}")
        if response.status == 416:
            response.close()
            response = self._download(key, None)  # an empty object has no range at all
        with response:
            found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            size_bytes = int(found[3]) if found else response.length
            if size_bytes is None:
                raise InvalidRequestError("the server does not tell the object's length", key=key)
            data = response.read(min(size_bytes, max_bytes))
        if len(data) != min(size_bytes, max_bytes):
            raise TransientError("the answer is shorter than the object", key=key)
        if len(data) == size_bytes:
            _check_whole(response, [memoryview(data)], key)
        modified = response.headers.get("Last-Modified")
        meta = ObjectMeta(
            key=key,
            size_bytes=size_bytes,
            etag=response.headers.get("x-goog-generation", ""),
            modified_at=parsedate_to_datetime(modified) if modified else None,
        )
        return ObjectData(meta=meta, data=data)

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers from ``start`` on."""
        length = total_bytes(buffers)
        condition = [] if if_match is None else [_generation_match(if_match, key)]
        with self._download(key, f"bytes={start}-{start + length - 1}", condition) as response:
            if response.status == 416:
                raise range_beyond_end(key, start, length, None)
            found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != start:
                raise InvalidRequestError("the server does not answer ranges", key=key)
            if if_match not in (None, response.headers.get("x-goog-generation")):
                raise PreconditionError("the object is another version", key=key)
            if int(found[2]) != start + length - 1:
                raise range_beyond_end(key, start, length, int(found[3]))
            response.read_into(buffers)
        if length == int(found[3]):
            _check_whole(response, buffers, key)

    def put(
        self,
        key: str,
        data: Buffers,
        *,
        condition: PutCondition | None = None,
        crc32: int | None = None,  # noqa: ARG002 - Google verifies CRC-32C instead
    ) -> ObjectMeta:
        """Store a whole object."""
        wanted: Query = []
        if isinstance(condition, IfAbsent):
            wanted = [("ifGenerationMatch", "0")]
        if isinstance(condition, IfMatch):
            wanted = [_generation_match(condition.etag, key)]
        try:
            # Sent twice, a conditional write would find its own object.
            return meta_of(self.objects.insert(key, data, wanted, replay=condition is None))
        except PreconditionError as error:
            if isinstance(condition, IfAbsent):
                raise AlreadyExistsError("the object is already there", key=key, cause=error.cause) from error
            raise

    def create_multipart(self, key: str) -> MultipartUpload:
        """Begin an upload in parts."""
        return ComposeUpload.begin(self.objects, key) if self._composes else XMLUpload.begin(self._client, key)

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects."""
        if if_match is None:
            self.objects.delete(keys)
        else:
            self._delete_version(keys[0], if_match)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix."""
        start = below(prefix)
        for resource in self.objects.list(start):
            # Neither the marker that consoles store for a "folder", nor the pieces of uploads.
            if resource["name"] != start and not resource["name"].startswith(PIECES):
                yield meta_of(resource)

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level."""
        for found in self.objects.list_prefixes(below(prefix)):
            if found != PIECES:
                yield found.removesuffix("/")

    def list_multiparts(self, prefix: str = "") -> Iterator[MultipartUpload]:
        """List unfinished uploads."""
        return ComposeUpload.find(self.objects, prefix) if self._composes else XMLUpload.find(self._client, prefix)

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    def copies_from(self, source: ObjectStore) -> bool:
        """Tell whether Google could copy from there."""
        return isinstance(source, GCSStore) and source._client.config == self._client.config

    def copy_from(self, source: ObjectStore, meta: ObjectMeta, key: str, repeat: Repeat) -> None:
        """Copy an object."""
        assert isinstance(source, GCSStore)  # noqa: S101 - copies_from was asked
        self.objects.rewrite(source._client, meta.key, meta.etag, key, repeat)

    def _delete_version(self, key: str, generation: str) -> None:
        try:
            self.objects.delete_one(key, [_generation_match(generation, key)])
        except PreconditionError:
            with suppress(NotFoundError):
                self.head(key)  # an object that is gone meets no condition either
                raise

    @property
    def _client(self) -> GCSClient:
        return self.objects.client

    @property
    def _composes(self) -> bool:
        return self._client.config.upload_method == "compose"

    def _download(self, key: str, byte_range: str | None, query: Query = ()) -> WireResponse:
        # With gzip accepted, an object that is stored compressed comes as it is stored: ranges and lengths hold.
        headers = [("Accept-Encoding", "gzip")] + ([("Range", byte_range)] if byte_range else [])
        try:
            return self._client.send(
                "GET",
                f"/download{self._client.object_path(key)}",
                query=[("alt", "media"), *query, *self._client.billing],
                headers=headers,
                action=f"download from {self.uri}",
                key=key,
                accept=(416,),
            )
        except NotFoundError as error:
            raise self._client.explain_not_found(error) from error


def open_gcs(uri: StoreURI, config: GCSConfig) -> ObjectStore:
    """Open the bucket that a ``gs://`` URI names."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator and config.endpoint_url is None:
        config = dataclasses.replace(
            config,
            endpoint_url=emulator if "://" in emulator else f"http://{emulator}",
            anonymous=config.credentials_factory is None,
        )
    return GCSStore(GCSObjects(GCSClient(uri.bucket, config)))


def _generation_match(etag: str, key: str) -> tuple[str, str]:
    # 0 would mean "no object", and what is no number was never a version.
    if not _GENERATION.fullmatch(etag):
        raise PreconditionError("the object is another version or gone", key=key, cause=f"{etag!r} is no generation")
    return ("ifGenerationMatch", etag)


def _check_whole(response: WireResponse, data: Buffers, key: str) -> None:
    expected = crc32c_from_headers(response.headers.get_all("x-goog-hash", []))
    if expected is not None:
        check_crc32c(expected, crc32c_of(data), key=key, what="the object")
