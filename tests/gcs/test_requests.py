"""What goes to the JSON API, and what is made of its answers."""

from __future__ import annotations

import email
import json
from collections.abc import Callable

import google_crc32c
import pytest

from dcp_cloud.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    ThrottledError,
    TransientError,
)
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectStore
from dcp_cloud.stores.gcs_checksum import crc32c_text
from tests.gcs.stub import Answer, Request, Stub, json_answer, json_error

Open = Callable[..., ObjectStore]
_DATA = b"some data"
_CRC = crc32c_text(google_crc32c.value(_DATA))
_RESOURCE = {
    "name": "a b/ü",
    "size": str(len(_DATA)),
    "generation": "1700000000000001",
    "crc32c": _CRC,
    "updated": "2026-01-31T12:00:00.12Z",
}


def _parts(request: Request) -> list[tuple[str, bytes]]:
    """Take a multipart body apart."""
    message = email.message_from_bytes(
        b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n" + request.body
    )
    return [(part.get_content_type(), part.get_payload(decode=True)) for part in message.get_payload()]


def _media(data: bytes, **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        206, data, {"x-goog-generation": "7", "Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}", **fields}
    )


def test_a_put_carries_settings_checksum_and_data(stub: Stub, open_at: Open):
    """One request: the resource with checksum, class and metadata, then the bytes; key and payer in the query."""
    stub.script(json_answer(_RESOURCE))
    store = open_at(kms_key_name="k/1", storage_class="NEARLINE", user_project="payer", metadata={"run": "7"})
    meta = store.put("a b/ü", [memoryview(b"some "), memoryview(b""), memoryview(b"data")])
    assert (meta.key, meta.size_bytes, meta.etag) == ("a b/ü", 9, "1700000000000001")
    assert meta.modified_at is not None
    assert meta.modified_at.isoformat() == "2026-01-31T12:00:00.120000+00:00"
    request = stub.last
    assert (request.method, request.path) == ("POST", "/upload/storage/v1/b/bucket/o")
    assert request.query["uploadType"] == "multipart"
    assert request.query["kmsKeyName"] == "k/1"
    assert request.query["userProject"] == request.headers["x-goog-user-project"] == "payer"
    assert "ifGenerationMatch" not in request.query
    assert request.headers["content-type"].startswith("multipart/related; boundary=")
    (resource_type, resource), (data_type, data) = _parts(request)
    assert (resource_type, data_type, data) == ("application/json", "application/octet-stream", _DATA)
    assert json.loads(resource) == {
        "name": "a b/ü",
        "crc32c": _CRC,
        "contentType": "application/octet-stream",
        "storageClass": "NEARLINE",
        "metadata": {"run": "7"},
    }


@pytest.mark.parametrize(
    ("condition", "wanted", "error"),
    [(IfAbsent(), "0", AlreadyExistsError), (IfMatch("17"), "17", PreconditionError)],
)
def test_a_condition_is_a_generation(stub: Stub, open_at: Open, condition, wanted: str, error: type[StoreError]):
    """Create-only is generation 0; a failed precondition is the error that the condition calls for."""
    stub.script(json_error(412, "conditionNotMet"))
    with pytest.raises(error):
        open_at().put("a", [memoryview(_DATA)], condition=condition)
    assert stub.last.query["ifGenerationMatch"] == wanted


@pytest.mark.parametrize("etag", ["0", "-1", "0" * 32, "", "abc", "1 2", "9" * 30])
def test_what_is_no_generation_matches_nothing(stub: Stub, open_at: Open, etag: str):
    """A token that cannot be a version is refused here: as generation 0 it would mean the opposite."""
    with pytest.raises(PreconditionError):
        open_at().put("a", [memoryview(_DATA)], condition=IfMatch(etag))
    with pytest.raises(PreconditionError):
        open_at().get_range("a", 0, [memoryview(bytearray(1))], if_match=etag)
    assert stub.requests == []


def test_an_object_that_arrived_changed_is_noticed(stub: Stub, open_at: Open):
    """The checksum in the answer to a put must be that of what was sent."""
    stub.script(json_answer({**_RESOURCE, "crc32c": crc32c_text(1)}))
    with pytest.raises(ChecksumMismatchError):
        open_at().put("a", [memoryview(_DATA)])


def test_a_whole_object_is_checked_when_it_is_read(stub: Stub, open_at: Open):
    """``x-goog-hash`` holds for the whole object: get and get_range compare it when they read all."""
    hashes = {"x-goog-hash": f"crc32c={_CRC},md5=xxxx"}
    stub.script(_media(_DATA, **hashes), _media(_DATA, **hashes), *[_media(b"some dat!", **hashes)] * 2)
    store, room = open_at(), bytearray(9)
    assert store.get("a", max_bytes=100).data == _DATA
    store.get_range("a", 0, [memoryview(room)[:4], memoryview(room)[4:]])
    assert room == _DATA
    with pytest.raises(ChecksumMismatchError):
        store.get("a", max_bytes=100)
    with pytest.raises(ChecksumMismatchError):
        store.get_range("a", 0, [memoryview(room)])


def test_a_ranged_read_asks_for_the_stored_bytes(stub: Stub, open_at: Open):
    """``Accept-Encoding: gzip`` keeps Google from unpacking compressed objects, for which it ignores ranges."""
    stub.script(Answer(206, b"me d", {"Content-Range": "bytes 2-5/9", "x-goog-generation": "17"}))
    room = bytearray(4)
    open_at(user_project="payer").get_range("a/b", 2, [memoryview(room)], if_match="17")
    assert room == b"me d"
    request = stub.last
    assert request.path == "/download/storage/v1/b/bucket/o/a%2Fb"
    assert (request.headers["range"], request.headers["accept-encoding"]) == ("bytes=2-5", "gzip")
    assert request.query == {"alt": "media", "ifGenerationMatch": "17", "userProject": "payer"}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(206, b"me", {"Content-Range": "bytes 2-3/4", "x-goog-generation": "17"}), InvalidRequestError),
        (Answer(200, b"some data", {"x-goog-generation": "17"}), InvalidRequestError),
        (Answer(206, b"some", {"Content-Range": "bytes 0-3/9", "x-goog-generation": "17"}), InvalidRequestError),
        (Answer(206, b"me d", {"Content-Range": "bytes 2-5/9", "x-goog-generation": "18"}), PreconditionError),
        (Answer(416, b"", {"Content-Range": "bytes */2"}), InvalidRequestError),
        (json_error(412, "conditionNotMet"), PreconditionError),
    ],
)
def test_a_range_is_exactly_what_was_asked_for(stub: Stub, open_at: Open, answer: Answer, error: type[StoreError]):
    """A shorter, shifted, whole or newer answer is an error, not data."""
    stub.script(answer)
    with pytest.raises(error) as caught:
        open_at().get_range("a", 2, [memoryview(bytearray(4))], if_match="17")
    assert not isinstance(caught.value, TransientError)


def test_listings_follow_their_pages(stub: Stub, open_at: Open):
    """Each page names the next; folder markers and the pieces of uploads are not data."""
    names = ["a/", "a/x", ".dcp-cloud-uploads/a/0/started"]
    stub.script(
        json_answer({"items": [{**_RESOURCE, "name": name} for name in names], "nextPageToken": "t+/="}),
        json_answer({"nextPageToken": "u"}),
        json_answer({"items": [{**_RESOURCE, "name": "a/y"}]}),
    )
    assert [meta.key for meta in open_at().list("a")] == ["a/x", "a/y"]
    assert [request.query.get("pageToken") for request in stub.requests] == [None, "t+/=", "u"]
    assert {request.query["prefix"] for request in stub.requests} == {"a/"}


_BATCH = (
    "--b\r\nContent-Type: application/http\r\nContent-ID: <response-call+1>\r\n\r\n"
    "HTTP/1.1 {}\r\nContent-Type: application/json\r\n\r\n{}\r\n"
    "--b\r\nContent-Type: application/http\r\nContent-ID: <response-call+0>\r\n\r\n"
    "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n\r\n--b--"
)


def _batch(status: str, reason: str) -> Answer:
    body = _BATCH.format(status, json.dumps({"error": {"errors": [{"reason": reason}], "message": "m"}}))
    return Answer(200, body.encode(), {"Content-Type": "multipart/mixed; boundary=b"})


def test_many_deletes_are_one_request(stub: Stub, open_at: Open):
    """Up to a hundred deletes travel in one request, in any order of answers; a missing object counts as deleted."""
    stub.script(_batch("404 Not Found", "notFound"), json_answer({"kind": "storage#objects"}))
    open_at(user_project="payer").delete(["a/b", "c"])
    request = stub.requests[0]
    assert (request.method, request.path) == ("POST", "/batch/storage/v1")
    assert [(kind, data.split(b"\r\n")[0]) for kind, data in _parts(request)] == [
        ("application/http", b"DELETE /storage/v1/b/bucket/o/a%2Fb?userProject=payer HTTP/1.1"),
        ("application/http", b"DELETE /storage/v1/b/bucket/o/c?userProject=payer HTTP/1.1"),
    ]


def test_a_version_is_deleted_by_its_generation(stub: Stub, open_at: Open):
    """The condition goes along; another version stays, and one that is gone counts as deleted, whatever the answer."""
    stub.script(Answer(204), json_error(412, "conditionNotMet"), json_answer(_RESOURCE))
    store = open_at()
    store.delete(["a"], if_match="7")
    assert (stub.last.method, stub.last.query["ifGenerationMatch"]) == ("DELETE", "7")
    with pytest.raises(PreconditionError):
        store.delete(["a"], if_match="7")
    looks = [json_answer({"kind": "storage#objects"})]  # for the bucket, after a 404
    for answers in ([json_error(404, "notFound")], [json_error(412, "conditionNotMet"), json_error(404, "notFound")]):
        stub.script(*answers, *looks)
        store.delete(["a"], if_match="7")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_batch("403 Forbidden", "forbidden"), PermissionDeniedError),
        (_batch("503 Service Unavailable", "backendError"), TransientError),
        (_batch("429 Too Many Requests", "rateLimitExceeded"), ThrottledError),
        (Answer(200, b"--b--", {"Content-Type": "multipart/mixed; boundary=b"}), TransientError),
        (Answer(200, b"{}", {"Content-Type": "application/json"}), TransientError),
    ],
)
def test_a_failed_delete_in_a_batch_is_an_error(stub: Stub, open_at: Open, answer: Answer, error: type[StoreError]):
    """What a batch answers for one key is that key's error; a key without an answer is not deleted."""
    stub.script(answer)
    with pytest.raises(error):
        open_at().delete(["a", "c"])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (json_error(404, "notFound"), BucketNotFoundError),
        (json_answer({"kind": "storage#objects"}), NotFoundError),
        (json_error(403, "forbidden"), NotFoundError),
        (json_error(503, "backendError"), NotFoundError),
    ],
)
@pytest.mark.parametrize("verb", ["head", "get", "get_range"])
def test_a_missing_bucket_is_told_from_a_missing_object(
    stub: Stub, open_at: Open, verb: str, answer: Answer, error: type[StoreError]
):
    """The JSON API's 404 is the same for both, so a listing of one name tells which it is, where listing is allowed."""
    stub.script(json_error(404, "notFound"), answer)
    store = open_at()
    call = {
        "head": lambda: store.head("a"),
        "get": lambda: store.get("a", max_bytes=1),
        "get_range": lambda: store.get_range("a", 0, [memoryview(bytearray(1))]),
    }[verb]
    with pytest.raises(NotFoundError) as caught:
        call()
    assert type(caught.value) is error
    assert stub.last.query["maxResults"] == "1"


def test_throttling_says_how_long_to_wait(stub: Stub, open_at: Open):
    """``Retry-After`` reaches the layer that retries."""
    stub.script(json_error(429, "rateLimitExceeded", Retry_After="7"))
    with pytest.raises(ThrottledError) as caught:
        open_at().head("a")
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    "body",
    [
        b"<html>gateway",
        b"\xff\xfe",
        b"{not json",
        b"[]",
        b'{"error": "text"}',
        b'{"error": {"errors": ["x"]}}',
        b"<a/>",
        b"",
    ],
)
def test_an_error_from_something_else_is_still_typed(stub: Stub, open_at: Open, body: bytes):
    """A proxy's error page has no code; its status decides."""
    stub.script(Answer(502, body))
    with pytest.raises(TransientError):
        open_at().head("a")


def test_an_answer_from_something_else_is_no_data(stub: Stub, open_at: Open):
    """A login page with status 200 is no object."""
    stub.script(Answer(200, b"<html>please log in"))
    with pytest.raises(TransientError):
        open_at().head("a")


@pytest.mark.parametrize("reason", ["required", "UserProjectMissing"])
def test_a_requester_pays_bucket_says_what_is_missing(stub: Stub, open_at: Open, reason: str):
    """The error names the option that helps."""
    stub.script(json_error(400, reason))
    with pytest.raises(InvalidRequestError, match="user_project"):
        open_at().head("a")
