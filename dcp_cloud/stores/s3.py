"""``s3://bucket``: Amazon S3 and the servers that speak its language."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    StoreError,
    TransientError,
)
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
from dcp_cloud.stores.keys import below, check_indices, range_beyond_end, total_bytes
from dcp_cloud.stores.region import Regions
from dcp_cloud.stores.s3_arguments import check_directory_bucket
from dcp_cloud.stores.s3_client import S3Client
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.stores.s3_copy import can_copy, copy_object
from dcp_cloud.stores.s3_dialect import DIALECTS, Dialect
from dcp_cloud.stores.s3_errors import from_answer
from dcp_cloud.stores.server_side import Repeat
from dcp_cloud.uri import StoreURI

# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_MAX_DELETED_KEYS = 1000

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")


@dataclass(frozen=True, slots=True)
class S3Store:
    """Objects in a bucket.

    Args:
        client: The bucket's client.
    """

    client: S3Client

    @property
    def uri(self) -> str:
        """The root as text that may be shown."""
        return f"s3://{self.client.bucket}"

    @property
    def limits(self) -> StoreLimits:
        """S3's limits, or those of the server that the settings name."""
        return self._dialect.limits

    def head(self, key: str) -> ObjectMeta:
        """Describe an object."""
        try:
            return self._head(key)
        except TransientError:
            raise
        except StoreError:
            # The answer to HEAD has no body that could say why: a GET tells a missing object from a missing bucket,
            # and wrong credentials from a missing permission.
            return self.get(key, max_bytes=1).meta

    def get(self, key: str, *, max_bytes: int) -> ObjectData:
        """Read the beginning of an object."""
        try:
            with self.client.receive(key=key, Range=f"bytes=0-{max_bytes - 1}") as (answer, response):
                found = _CONTENT_RANGE.match(answer.get("ContentRange", ""))
                size_bytes = int(found[3]) if found else answer["ContentLength"]
                data = response.read(max_bytes)
        except InvalidRequestError:
            meta = self._head(key)
            if meta.size_bytes:
                raise
            return ObjectData(meta=meta, data=b"")  # an empty object has no range at all
        if len(data) != min(size_bytes, max_bytes):
            raise TransientError("the answer is shorter than the object", key=key)
        return ObjectData(meta=_meta(key, size_bytes, answer), data=data)

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        """Fill buffers from ``start`` on."""
        length = total_bytes(buffers)
        condition = {} if if_match is None else {"IfMatch": self._dialect.condition(if_match)}
        wanted = f"bytes={start}-{start + length - 1}"
        with self.client.receive_range(key=key, Range=wanted, **condition) as (content_range, response):
            found = _CONTENT_RANGE.match(content_range)
            if found is None or int(found[1]) != start:
                raise InvalidRequestError("the server does not answer ranges", key=key)
            if int(found[2]) != start + length - 1:
                raise range_beyond_end(key, start, length, int(found[3]))
            response.read_into(buffers)

    def put(
        self, key: str, data: Buffers, *, condition: PutCondition | None = None, crc32: int | None = None
    ) -> ObjectMeta:
        """Store a whole object."""
        arguments: dict[str, Any] = {}
        if isinstance(condition, IfAbsent):
            arguments["IfNoneMatch"] = "*"
        if isinstance(condition, IfMatch):
            arguments["IfMatch"] = self._dialect.condition(condition.etag)
        try:
            answer = self.client.send(
                "put_object",
                data,
                key=key,
                # Sent twice, a create-only write would find its own object.
                replay=condition is None,
                **arguments,
                **self._checksum(data, crc32),
            )
        except (PreconditionError, NotFoundError) as error:
            raise _lost_condition(error, condition, key) from error
        return _meta(key, total_bytes(data), answer)

    def regions(self) -> Regions:
        """See where the bucket is, and where requests are sent first."""
        answer = self.client.call("head_bucket", subject="")
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return Regions(
            bucket=answer.get("BucketRegion") or headers.get("x-amz-bucket-region") or None, client=self.client.region
        )

    def create_multipart(self, key: str) -> S3Upload:
        """Begin an upload in parts."""
        checksum = {"ChecksumAlgorithm": "CRC32"} if self._sends_checksums else {}
        answer = self.client.call("create_multipart_upload", subject=key, Key=key, **checksum)
        return S3Upload(self, key, answer["UploadId"], checksums=self._sends_checksums)

    def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
        """Delete objects. A server that does not know the condition, Ceph 16 for one, deletes whatever is there."""
        if if_match is not None:
            self._delete_version(keys[0], if_match)
            return
        failure: StoreError | None = None
        for start in range(0, len(keys), _MAX_DELETED_KEYS):
            try:
                self._delete_batch(keys[start : start + _MAX_DELETED_KEYS])
            except StoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """List all objects below a prefix."""
        start = below(prefix)
        for page in self.client.pages("list_objects_v2", subject=prefix, Prefix=start):
            for entry in page.get("Contents", ()):
                if entry["Key"] != start:  # the marker that consoles store for a "folder"
                    yield _meta(entry["Key"], entry["Size"], entry)

    def list_prefixes(self, prefix: str = "") -> Iterator[str]:
        """List the names of the next level."""
        for page in self.client.pages("list_objects_v2", subject=prefix, Prefix=below(prefix), Delimiter="/"):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removesuffix("/")

    def list_multiparts(self, prefix: str = "") -> Iterator[S3Upload]:
        """List unfinished uploads."""
        start = below(prefix)
        asked_for = start if self._dialect.lists_uploads_by_prefix else ""
        for page in self.client.pages("list_multipart_uploads", subject=prefix, Prefix=asked_for):
            for entry in page.get("Uploads", ()):
                if not entry["Key"].startswith(start):
                    continue
                yield S3Upload(
                    self,
                    entry["Key"],
                    entry["UploadId"],
                    checksums="ChecksumAlgorithm" in entry,
                    started_at=entry.get("Initiated"),
                )

    def close(self) -> None:
        """Release connections."""
        self.client.close()

    def copies_from(self, source: ObjectStore) -> bool:
        """Tell whether S3 could copy from there."""
        return isinstance(source, S3Store) and can_copy(source.client, self.client)

    def copy_from(self, source: ObjectStore, meta: ObjectMeta, key: str, repeat: Repeat) -> None:
        """Copy an object."""
        assert isinstance(source, S3Store)  # noqa: S101 - copies_from was asked
        copy_object(source.client, self.client, meta, key, repeat)

    @property
    def _dialect(self) -> Dialect:
        return DIALECTS[self.client.config.compatibility]

    @property
    def _sends_checksums(self) -> bool:
        return self.client.config.checksums == "when_supported"

    def _checksum(self, data: Buffers, crc32: int | None) -> dict[str, Any]:
        if not self._sends_checksums:
            return {}
        return {"ChecksumCRC32": _crc32_text(_crc32(data) if crc32 is None else crc32)}

    def _head(self, key: str) -> ObjectMeta:
        answer = self.client.call("head_object", subject=key, Key=key)
        return _meta(key, answer["ContentLength"], answer)

    def _delete_version(self, key: str, etag: str) -> None:
        try:
            self.client.call("delete_object", subject=key, Key=key, IfMatch=self._dialect.condition(etag))
        except BucketNotFoundError:
            raise
        except NotFoundError:
            return

    def _delete_batch(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            self.client.call("delete_object", subject=keys[0], Key=keys[0])
            return
        answer = self.client.call(
            "delete_objects", subject=keys[0], Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
        for error in answer.get("Errors", ()):
            raise from_answer({"Error": error}, action=f"delete_objects on {self.uri}", key=error.get("Key"))


@dataclass(frozen=True, slots=True)
class S3Upload:
    """An unfinished multipart upload.

    Args:
        store: The store it belongs to.
        key: Key of the object to be.
        upload_id: S3's name for it.
        checksums: Whether each part must bring a CRC-32: S3 decides that when the upload begins.
        started_at: When it was begun, if a listing told.
    """

    store: S3Store
    key: str
    upload_id: str
    checksums: bool
    started_at: datetime | None = None

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part."""
        checksum: dict[str, Any] = {}
        if self.checksums:
            crc32 = _crc32(data) if crc32 is None else crc32
            checksum["ChecksumCRC32"] = _crc32_text(crc32)
        answer = self.store.client.send_part(
            data, key=self.key, UploadId=self.upload_id, PartNumber=index + 1, **checksum
        )
        return Part(index=index, token=answer["ETag"], size_bytes=total_bytes(data), crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        check_indices(parts, key=self.key)
        answer = self.store.client.call(
            "complete_multipart_upload",
            subject=self.key,
            Key=self.key,
            UploadId=self.upload_id,
            MultipartUpload={"Parts": [self._receipt(part) for part in parts]},
        )
        if not answer.get("ETag"):
            return self.store.head(self.key)  # Ceph before 17 leaves it out
        return _meta(self.key, sum(part.size_bytes for part in parts), answer)

    def abort(self) -> None:
        """Drop the upload and its parts."""
        try:
            self.store.client.call("abort_multipart_upload", subject=self.key, Key=self.key, UploadId=self.upload_id)
        except BucketNotFoundError:
            raise
        except NotFoundError:
            return

    def _receipt(self, part: Part) -> dict[str, Any]:
        receipt: dict[str, Any] = {"PartNumber": part.index + 1, "ETag": part.token}
        if self.checksums and part.crc32 is not None:
            receipt["ChecksumCRC32"] = _crc32_text(part.crc32)
        return receipt


def open_s3(uri: StoreURI, config: S3Config) -> ObjectStore:
    """Open the bucket that an ``s3://`` URI names."""
    check_directory_bucket(uri.bucket, config)
    return S3Store(S3Client(uri.bucket, config))


def _lost_condition(error: StoreError, condition: PutCondition | None, key: str) -> StoreError:
    if isinstance(condition, IfAbsent) and isinstance(error, PreconditionError):
        return AlreadyExistsError("the object is already there", key=key, cause=error.cause)
    if isinstance(condition, IfMatch) and not isinstance(error, BucketNotFoundError):
        return PreconditionError("the object is another version or gone", key=key, cause=error.cause)
    return error


def _meta(key: str, size_bytes: int, answer: dict[str, Any]) -> ObjectMeta:
    etag = answer.get("ETag", "").strip('"')
    return ObjectMeta(key=key, size_bytes=size_bytes, etag=etag, modified_at=answer.get("LastModified"))


def _crc32(data: Buffers) -> int:
    crc = 0
    for buffer in data:
        crc = crc32(buffer, crc)
    return crc


def _crc32_text(crc32: int) -> str:
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()
