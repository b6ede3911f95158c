"""Uploads in parts by the XML API: https://docs.cloud.google.com/storage/docs/multipart-uploads.

The requests are S3's, but authorised by a token and with CRC-32C as checksum. There are no preconditions: an object's
last completed upload wins. That is right for data, whose keys are used once; what decides is written by ``put``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dcp_cloud.crc32 import combine_crc32c
from dcp_cloud.errors import BucketNotFoundError, InvalidRequestError, NotFoundError, StoreError, TransientError
from dcp_cloud.stores.base import Buffers, ObjectMeta, Part
from dcp_cloud.stores.gcs_checksum import check_crc32c, crc32c_from_headers, crc32c_of, crc32c_text
from dcp_cloud.stores.gcs_client import GCSClient, Headers, Query
from dcp_cloud.stores.gcs_errors import from_answer
from dcp_cloud.stores.gcs_objects import CONTENT_TYPE, read_time
from dcp_cloud.stores.keys import below, check_indices, total_bytes


@dataclass(frozen=True, slots=True)
class XMLUpload:
    """An unfinished multipart upload.

    Args:
        client: The bucket's client.
        key: Key of the object to be.
        upload_id: Google's name for it.
        started_at: When it was begun, if a listing told.
    """

    client: GCSClient
    key: str
    upload_id: str
    started_at: datetime | None = None

    @classmethod
    def begin(cls, client: GCSClient, key: str) -> XMLUpload:
        """Begin an upload.

        Args:
            client: The bucket's client.
            key: Key of the object to be.
        """
        document, _ = client.xml(
            "POST",
            client.xml_path(key),
            query=[("uploads", "")],
            headers=[("Content-Type", CONTENT_TYPE), *_properties(client)],
            action=f"begin of an upload to {client.uri}",
            key=key,
            replay=False,
        )
        upload_id = _text(document, "UploadId")
        if not upload_id:
            raise TransientError("the answer names no upload", key=key)
        return cls(client, key, upload_id)

    @classmethod
    def find(cls, client: GCSClient, prefix: str) -> Iterator[XMLUpload]:
        """List unfinished uploads.

        Args:
            client: The bucket's client.
            prefix: Prefix of whole segments.
        """
        marker: Query = []
        while True:
            document, _ = client.xml(
                "GET",
                client.xml_path(),
                query=[("uploads", ""), ("prefix", below(prefix)), ("max-uploads", "1000"), *marker],
                action=f"listing of uploads on {client.uri}",
                key=prefix or None,
            )
            for element in _children(document, "Upload"):
                started = _text(element, "Initiated")
                yield cls(
                    client,
                    _text(element, "Key"),
                    _text(element, "UploadId"),
                    read_time(started) if started else None,
                )
            if _text(document, "IsTruncated").lower() != "true":
                return
            marker = [
                ("key-marker", _text(document, "NextKeyMarker")),
                ("upload-id-marker", _text(document, "NextUploadIdMarker")),
            ]

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part."""
        crc = crc32c_of(data)
        _, response = self.client.xml(
            "PUT",
            self.client.xml_path(self.key),
            query=[("partNumber", str(index + 1)), *self._query],
            headers=[("x-goog-hash", f"crc32c={crc32c_text(crc)}")],
            body=data,
            action=f"upload of a part to {self.client.uri}",
            key=self.key,
        )
        stored = crc32c_from_headers(response.headers.get_all("x-goog-hash", []))
        check_crc32c(stored, crc, key=self.key, what=f"part {index}")
        token = f"{crc:08x} {response.headers.get('ETag', '')}"
        return Part(index=index, token=token, size_bytes=total_bytes(data), crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        check_indices(parts, key=self.key)
        request = ET.Element("CompleteMultipartUpload")
        size_bytes = crc = 0
        for part in parts:
            part_crc, etag = _read_token(part, self.key)
            crc, size_bytes = combine_crc32c(crc, part_crc, part.size_bytes), size_bytes + part.size_bytes
            element = ET.SubElement(request, "Part")
            ET.SubElement(element, "PartNumber").text = str(part.index + 1)
            ET.SubElement(element, "ETag").text = etag
        try:
            self._complete(ET.tostring(request, encoding="utf-8"))
        except BucketNotFoundError:
            raise
        except NotFoundError as lost:
            # An earlier completion may have taken effect and its answer got lost. Whoever repeats it must not have to
            # guess that from the length: only here the parts' checksum is known.
            return self._find_own_work(size_bytes, crc, lost)
        return self._describe(size_bytes, crc)

    def abort(self) -> None:
        """Drop the upload and its parts."""
        try:
            self.client.xml(
                "DELETE",
                self.client.xml_path(self.key),
                query=self._query,
                action=f"abort of an upload to {self.client.uri}",
                key=self.key,
            )
        except BucketNotFoundError:
            raise
        except NotFoundError:
            return

    @property
    def _query(self) -> Query:
        return [("uploadId", self.upload_id)]

    def _complete(self, receipts: bytes) -> None:
        action = f"completion of an upload to {self.client.uri}"
        document, response = self.client.xml(
            "POST",
            self.client.xml_path(self.key),
            query=self._query,
            headers=[("Content-Type", "application/xml")],
            body=[memoryview(receipts)],
            action=action,
            key=self.key,
            replay=False,
        )
        if document is not None and document.tag.rpartition("}")[2] == "Error":
            # As in S3, a long completion may begin to answer before it knows how it ends.
            raise from_answer(500, response.headers, ET.tostring(document), action=action, key=self.key)

    def _find_own_work(self, size_bytes: int, crc: int, lost: NotFoundError) -> ObjectMeta:
        """Look whether the object is there that the parts make, now that the upload is gone."""
        try:
            found, found_crc = self._head(size_bytes)
        except NotFoundError:
            raise lost from None
        if found.size_bytes != size_bytes or found_crc is None:
            raise lost
        self._check(found, found_crc, size_bytes, crc)
        return found

    def _describe(self, size_bytes: int, crc: int) -> ObjectMeta:
        """Look at the new object: it must be as long as its parts and have their checksum."""
        found, found_crc = self._head(size_bytes)
        self._check(found, found_crc, size_bytes, crc)
        return found

    def _check(self, found: ObjectMeta, found_crc: int | None, size_bytes: int, crc: int) -> None:
        if found.size_bytes != size_bytes or found_crc not in (None, crc):
            # Not transient: the upload is gone, completing it again would not make it right.
            raise StoreError(
                "the completed object is not what was sent",
                key=self.key,
                cause=f"it has {found.size_bytes} bytes instead of {size_bytes}, or another checksum",
                hint="another program wrote the same key at the same time, or the provider lost data: save again",
            )

    def _head(self, size_bytes: int) -> tuple[ObjectMeta, int | None]:
        """Describe the object, with its checksum; a server that tells no length is believed to have the right one."""
        _, response = self.client.xml(
            "HEAD", self.client.xml_path(self.key), action=f"head on {self.client.uri}", key=self.key
        )
        headers = response.headers
        stored_bytes = headers.get("x-goog-stored-content-length") or headers.get("Content-Length") or size_bytes
        # A server without generations tells versions apart by their ETag.
        etag = headers.get("x-goog-generation") or headers.get("ETag", "").strip('"')
        crc = crc32c_from_headers(headers.get_all("x-goog-hash", []))
        return ObjectMeta(key=self.key, size_bytes=int(stored_bytes), etag=etag), crc


def _properties(client: GCSClient) -> Headers:
    config = client.config
    headers = [(f"x-goog-meta-{name}", value) for name, value in config.metadata.items()]
    if config.storage_class:
        headers.append(("x-goog-storage-class", config.storage_class))
    if config.kms_key_name:
        headers.append(("x-goog-encryption-kms-key-name", config.kms_key_name))
    return headers


def _read_token(part: Part, key: str) -> tuple[int, str]:
    crc, _, etag = part.token.partition(" ")
    try:
        return int(crc, 16), etag
    except ValueError:
        raise InvalidRequestError(f"the receipt of part {part.index} is none of this store's", key=key) from None


def _children(element: ET.Element | None, name: str) -> Iterator[ET.Element]:
    """Find children by name, whatever their namespace: Google's documents have one, S3's another."""
    for child in element if element is not None else ():
        if child.tag.rpartition("}")[2] == name:
            yield child


def _text(element: ET.Element | None, name: str) -> str:
    found = next(_children(element, name), None)
    return (found.text or "") if found is not None else ""
