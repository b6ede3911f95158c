"""Multipart uploads of the XML API: live against an S3 server, and at the level of HTTP against the documentation."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import pytest

from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import (
    BucketNotFoundError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    StoreError,
    TransientError,
)
from dcp_cloud.stores.base import ObjectMeta, ObjectStore, Part
from dcp_cloud.stores.gcs_checksum import crc32c_text
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import ObjectServer
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.uri import StoreURI
from tests.gcs.stub import Answer, Request, Stub, xml_error

Open = Callable[..., ObjectStore]
_MIB = 1024**2
_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def _hash(data: bytes) -> str:
    return f"crc32c={crc32c_text(google_crc32c.value(data))}"


@pytest.fixture
def live(
    servers: Callable[[str], ObjectServer], bucket_uri: Callable[..., str]
) -> Iterator[tuple[ObjectStore, Any, str]]:
    """A store on moto, whose S3 multipart uploads are the XML API's, with boto3 and the bucket to look at it."""
    bucket = StoreURI.parse(bucket_uri("moto")).bucket
    config = GCSConfig(endpoint_url=servers("moto").endpoint_url, anonymous=True)
    store = open_store(f"gs://{bucket}", config=config)
    yield store, servers("moto").client(), bucket
    store.close()


def _read(client: Any, bucket: str, key: str) -> bytes:
    with client.get_object(Bucket=bucket, Key=key)["Body"] as body:
        return bytes(body.read())


@pytest.mark.parametrize("key", ["a", "odd /key+%20&/ü日本?#"])
def test_live_parts_from_many_threads_make_the_object(live: tuple[ObjectStore, Any, str], key: str):
    """Parts go up in parallel and in any order, one of them twice, and boto3 reads the object back."""
    store, client, bucket = live
    contents = [random.Random(index).randbytes(5 * _MIB) for index in range(3)] + [b"the end"]
    upload = store.create_multipart(key)
    upload.put_part(0, [memoryview(b"x" * 5 * _MIB)])
    with ThreadPoolExecutor(4) as pool:
        sent = pool.map(lambda index: upload.put_part(index, [memoryview(contents[index])]), (3, 1, 0, 2))
        parts = sorted(sent, key=lambda part: part.index)
    meta = upload.complete(parts)
    assert (meta.key, meta.size_bytes) == (key, sum(map(len, contents)))
    assert _read(client, bucket, key) == b"".join(contents)


def test_live_uploads_are_listed_by_prefix_and_aborted(live: tuple[ObjectStore, Any, str]):
    """An unfinished upload is found by its key's prefix, goes on elsewhere, and is gone after an abort."""
    store, client, bucket = live
    for key in ("a/one", "a/b/two", "ab"):
        store.create_multipart(key).put_part(0, [memoryview(b"1")])
    assert sorted(upload.key for upload in store.list_multiparts("a")) == ["a/b/two", "a/one"]
    for upload in store.list_multiparts():
        assert upload.started_at is not None
        upload.abort()
        upload.abort()
    assert list(store.list_multiparts()) == []
    assert client.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_live_a_wrong_receipt_is_refused(live: tuple[ObjectStore, Any, str]):
    """The receipt of another upload's part does not complete this one."""
    store, _, _ = live
    first, second = store.create_multipart("a"), store.create_multipart("a")
    part = first.put_part(0, [memoryview(b"1")])
    second.put_part(0, [memoryview(b"2")])
    with pytest.raises(InvalidRequestError):
        second.complete([part])
    first.abort()
    second.abort()


def test_live_a_missing_bucket_is_named(live: tuple[ObjectStore, Any, str], servers: Callable[[str], ObjectServer]):
    """The XML API says which of the two is missing."""
    config = GCSConfig(endpoint_url=servers("moto").endpoint_url, anonymous=True)
    store = open_store("gs://no-such-bucket", config=config)
    with pytest.raises(BucketNotFoundError):
        store.create_multipart("a")
    with pytest.raises(BucketNotFoundError):
        list(store.list_multiparts())
    store.close()


class Google:
    """Answers as the documentation of Google's XML API has them."""

    def __init__(self, **changes: Answer) -> None:
        self._changes = changes
        self._parts: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Answer:
        verb = self._verb(request)
        if verb in self._changes:
            return self._changes[verb]
        if verb == "begin":
            body = f"<InitiateMultipartUploadResult {_XMLNS}><UploadId>id/+=</UploadId></InitiateMultipartUploadResult>"
            return Answer(200, body.encode())
        if verb == "part":
            self._parts[request.query["partNumber"]] = request.body
            return Answer(
                200, b"", {"ETag": f'"etag-{request.query["partNumber"]}"', "x-goog-hash": _hash(request.body)}
            )
        if verb == "complete":
            body = f"<CompleteMultipartUploadResult {_XMLNS}><ETag>e</ETag></CompleteMultipartUploadResult>"
            return Answer(200, body.encode())
        whole = b"".join(self._parts[number] for number in sorted(self._parts, key=int))
        fields = {
            "Content-Length": str(len(whole)),
            "x-goog-stored-content-length": str(len(whole)),
            "x-goog-generation": "1700000000000001",
            "x-goog-hash": _hash(whole),
        }
        return Answer(204 if verb == "abort" else 200, b"", fields if verb == "head" else {})

    @staticmethod
    def _verb(request: Request) -> str:
        if request.method == "POST":
            return "begin" if "uploads" in request.query else "complete"
        return {"PUT": "part", "HEAD": "head", "DELETE": "abort"}[request.method]


def test_an_upload_is_what_the_documentation_asks_for(stub: Stub, open_at: Open):
    """Key, class, metadata and payer at the beginning; a checksum with each part; numbers and ETags at the end."""
    stub.answer = Google()
    store = open_at(kms_key_name="k/1", storage_class="NEARLINE", user_project="payer", metadata={"run": "7"})
    upload = store.create_multipart("a b/ü")
    parts = [upload.put_part(index, [memoryview(data), memoryview(b"")]) for index, data in enumerate((b"one", b"two"))]
    meta = upload.complete(parts)
    assert (meta.key, meta.size_bytes, meta.etag) == ("a b/ü", 6, "1700000000000001")
    begin, first, second, complete, head = stub.requests
    assert {request.path for request in stub.requests} == {"/bucket/a%20b/%C3%BC"}
    assert all(request.headers["x-goog-user-project"] == "payer" for request in stub.requests)
    assert (begin.query, begin.headers["content-length"]) == ({"uploads": ""}, "0")
    assert begin.headers["x-goog-encryption-kms-key-name"] == "k/1"
    assert begin.headers["x-goog-storage-class"] == "NEARLINE"
    assert begin.headers["x-goog-meta-run"] == "7"
    assert begin.headers["content-type"] == "application/octet-stream"
    assert first.query == {"partNumber": "1", "uploadId": "id/+="}
    assert (first.headers["x-goog-hash"], first.body) == (_hash(b"one"), b"one")
    assert (second.query["partNumber"], second.headers["x-goog-hash"]) == ("2", _hash(b"two"))
    sent = [(part.findtext("PartNumber"), part.findtext("ETag")) for part in ET.fromstring(complete.body)]
    assert (complete.query, sent) == ({"uploadId": "id/+="}, [("1", '"etag-1"'), ("2", '"etag-2"')])
    assert head.method == "HEAD"


@pytest.mark.parametrize("answer", [xml_error(400, "BadDigest"), Answer(200, b"", {"x-goog-hash": _hash(b"other")})])
def test_a_part_that_arrived_changed_is_sent_again(stub: Stub, open_at: Open, answer: Answer):
    """A part whose checksum does not hold, as Google or as we see it, is a transient failure."""
    stub.answer = Google(part=answer)
    with pytest.raises(ChecksumMismatchError):
        open_at().create_multipart("a").put_part(0, [memoryview(b"data")])


@pytest.mark.parametrize(
    "fields",
    [
        {"x-goog-stored-content-length": "4", "x-goog-hash": _hash(b"daTa"), "x-goog-generation": "1"},
        {"x-goog-stored-content-length": "5", "x-goog-hash": _hash(b"data"), "x-goog-generation": "1"},
    ],
)
def test_an_object_that_is_not_its_parts_is_an_error(stub: Stub, open_at: Open, fields: dict[str, str]):
    """The finished object must have the length and the checksum that its parts make; that cannot be retried."""
    stub.answer = Google(head=Answer(200, b"", {**fields, "Content-Length": "4"}))
    upload = open_at().create_multipart("a")
    part = upload.put_part(0, [memoryview(b"data")])
    with pytest.raises(StoreError) as caught:
        upload.complete([part])
    assert not isinstance(caught.value, TransientError)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (xml_error(404, "NoSuchUpload"), NotFoundError),
        (xml_error(400, "InvalidPart"), InvalidRequestError),
        (xml_error(400, "EntityTooSmall"), InvalidRequestError),
        (xml_error(503, "ServiceUnavailable"), TransientError),
        (Answer(200, xml_error(200, "InternalError").body), TransientError),
        (Answer(200, xml_error(200, "NoSuchUpload").body), NotFoundError),
        (Answer(200, b"<not xml"), TransientError),
    ],
)
def test_a_failed_completion_is_typed(stub: Stub, open_at: Open, answer: Answer, error: type[StoreError]):
    """An error is an error even under status 200."""
    stub.answer = Google(complete=answer, head=xml_error(404, "NoSuchKey"))
    upload = open_at().create_multipart("a")
    part = upload.put_part(0, [memoryview(b"data")])
    with pytest.raises(error):
        upload.complete([part])


class Forgetful(Google):
    """Takes an upload, and does not get the answer to its first completion through: as ``lost`` says it was lost."""

    def __init__(self, lost: str, **changes: Answer) -> None:
        super().__init__(**changes)
        self._lost = lost
        self._tries = {"complete": 0, "head": 0}

    def __call__(self, request: Request) -> Answer:
        verb = self._verb(request)
        if verb in self._tries:
            self._tries[verb] += 1
            if verb == self._lost and self._tries[verb] == 1:
                return xml_error(503, "ServiceUnavailable")
            if verb == "complete" and self._tries[verb] > 1:
                return xml_error(404, "NoSuchUpload")
        return super().__call__(request)


def _complete_after_a_loss(store: ObjectStore) -> ObjectMeta:
    upload = RetryingStore(store, Retrier(config=RetryConfig(base_delay_s=0.01))).create_multipart("a")
    return upload.complete([upload.put_part(0, [memoryview(b"data")])])


@pytest.mark.parametrize("lost", ["complete", "head"])
def test_a_completion_whose_answer_was_lost_is_found_by_its_checksum(stub: Stub, open_at: Open, lost: str):
    """The upload is gone and the object is what the parts make: that was the first completion's work."""
    stub.answer = Forgetful(lost)
    meta = _complete_after_a_loss(open_at())
    assert (meta.size_bytes, meta.etag) == (4, "1700000000000001")


@pytest.mark.parametrize("lost", ["complete", "head"])
def test_an_object_of_the_right_length_is_not_enough(stub: Stub, open_at: Open, lost: str):
    """After a lost answer too, an object with another checksum is not taken for the one that was sent."""
    other = {"x-goog-stored-content-length": "4", "x-goog-hash": _hash(b"daTa"), "x-goog-generation": "1"}
    stub.answer = Forgetful(lost, head=Answer(200, b"", {**other, "Content-Length": "4"}))
    with pytest.raises(StoreError, match="not what was sent") as caught:
        _complete_after_a_loss(open_at())
    assert not isinstance(caught.value, TransientError | NotFoundError)


@pytest.mark.parametrize(
    "head",
    [
        xml_error(404, "NoSuchKey"),
        Answer(200, b"", {"x-goog-stored-content-length": "5", "x-goog-hash": _hash(b"other")}),
        Answer(200, b"", {"x-goog-stored-content-length": "4"}),
    ],
)
def test_an_upload_that_is_gone_without_its_object_is_gone(stub: Stub, open_at: Open, head: Answer):
    """No object, one of another length, or one that nothing is known of: then the upload was ended by others."""
    stub.answer = Google(complete=xml_error(404, "NoSuchUpload"), head=head)
    upload = open_at().create_multipart("a")
    with pytest.raises(NotFoundError):
        upload.complete([upload.put_part(0, [memoryview(b"data")])])


def test_a_receipt_of_another_store_is_refused(stub: Stub, open_at: Open):
    """A token that this store did not write is no receipt."""
    stub.answer = Google()
    upload = open_at().create_multipart("a")
    with pytest.raises(InvalidRequestError):
        upload.complete([Part(index=0, token='"etag"', size_bytes=4)])


def test_listing_goes_past_the_first_page(stub: Stub, open_at: Open):
    """Markers lead from page to page; namespaces do not matter."""
    page = (
        "<ListMultipartUploadsResult {}><IsTruncated>{}</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
        "<NextUploadIdMarker>u</NextUploadIdMarker><Upload><Key>{}</Key><UploadId>1</UploadId>"
        "<Initiated>2026-01-31T12:00:00.123456Z</Initiated></Upload></ListMultipartUploadsResult>"
    )
    stub.script(
        Answer(200, page.format(_XMLNS, "true", "a/1").encode()), Answer(200, page.format("", "false", "a/2").encode())
    )
    assert [upload.key for upload in open_at().list_multiparts("a")] == ["a/1", "a/2"]
    first, second = stub.requests
    assert (first.path, first.query["prefix"]) == ("/bucket", "a/")
    assert (second.query["key-marker"], second.query["upload-id-marker"]) == ("k", "u")
