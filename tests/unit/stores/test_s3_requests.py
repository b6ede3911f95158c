"""What the S3 store sends, and how it takes answers that no server at hand gives."""

from __future__ import annotations

import base64
import hashlib
import pickle
import ssl
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import boto3.session
import botocore.session
import pytest
import trustme
from botocore.credentials import RefreshableCredentials

from dcp_cloud.errors import (
    BucketNotFoundError,
    ConfigError,
    InvalidRequestError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
    WrongRegionError,
)
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectStore, Part
from dcp_cloud.stores.registry import open_store
from dcp_cloud.stores.s3_config import S3Config
from tests.unit.stores.stub_server import Answer, Request, StubServer, answer, stub_server

_DATA = memoryview(b"some data")
_CRC = zlib.crc32(_DATA)
_CRC_TEXT = base64.b64encode(_CRC.to_bytes(4, "big")).decode()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")


@pytest.fixture
def opened(credentials, request: pytest.FixtureRequest):
    """Open a store on a stub server that answers as told."""
    stores: list[ObjectStore] = []

    def open_on(respond: Answer, options: str = "", config: S3Config | None = None) -> tuple[ObjectStore, StubServer]:
        server = stub_server(respond)
        running = server.__enter__()
        request.addfinalizer(lambda: server.__exit__(None, None, None))
        store = open_store(f"s3://bucket/pre?endpoint_url={running.url}{options}", config=config)
        stores.append(store)
        return store, running

    yield open_on
    for store in stores:
        store.close()


def _error(status: int, code: str, **headers: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code><Message>why</Message></Error>".encode(), **headers)


def _ok(_request: Request) -> bytes:
    return answer(200, etag='"abc"')


@pytest.mark.parametrize("tls", [False, True])
def test_bodies_travel_unhashed_and_unchunked(credentials, tmp_path, tls: bool):
    """Over http and https alike: signed, with a CRC-32 that S3 verifies, no SHA-256, no trailer, no waiting."""
    context = None
    if tls:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with stub_server(_ok, tls=context) as server:
        config = S3Config(endpoint_url=server.url, ca_bundle=str(tmp_path / "ca.pem") if tls else None)
        store = open_store("s3://bucket/pre", config=config)
        meta = store.put("k", [_DATA[:4], _DATA[4:]], crc32=_CRC)
        store.close()
    [request] = server.requests
    assert (meta.etag, meta.size_bytes) == ("abc", len(_DATA))
    assert (request.method, request.target, request.body) == ("PUT", "/bucket/pre/k", bytes(_DATA))
    assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert request.headers["x-amz-checksum-crc32"] == _CRC_TEXT
    assert request.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDTEST/")
    assert not {"expect", "transfer-encoding", "x-amz-trailer", "content-encoding"} & set(request.headers)


def test_a_missing_checksum_is_computed(opened: Callable):
    """S3 refuses parts without a checksum once an upload was begun with them, so none goes without."""
    store, server = opened(_ok)
    store.put("k", [_DATA])
    assert server.requests[0].headers["x-amz-checksum-crc32"] == _CRC_TEXT


def test_when_required_sends_no_checksums(opened: Callable):
    """Servers that refuse the newer headers see none of them."""
    body = b"<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
    store, server = opened(
        lambda request: answer(200, body) if request.method == "POST" else _ok(request), "&checksums=when_required"
    )
    store.put("k", [_DATA], crc32=_CRC)
    part = store.create_multipart("k").put_part(0, [_DATA], crc32=_CRC)
    assert part.crc32 == _CRC
    assert not [name for request in server.requests for name in request.headers if "checksum" in name]


def test_parts_carry_checksums(opened: Callable):
    """The upload is begun with CRC-32, each part brings its own, and the completion repeats them."""
    started = b"<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
    completed = b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"

    def respond(request: Request) -> bytes:
        if request.method == "POST":
            return answer(200, completed if "uploadId" in request.target else started)
        return _ok(request)

    store, server = opened(respond)
    upload = store.create_multipart("k")
    upload.complete([upload.put_part(0, [_DATA], crc32=_CRC)])
    create, part, complete = server.requests
    assert create.headers["x-amz-checksum-algorithm"] == "CRC32"
    assert part.headers["x-amz-checksum-crc32"] == _CRC_TEXT
    assert "partNumber=1" in part.target
    assert f"<ChecksumCRC32>{_CRC_TEXT}</ChecksumCRC32>".encode() in complete.body


def test_conditions_are_headers(opened: Callable):
    """Create-only is If-None-Match, a known version is If-Match without quotes, which every server takes."""
    store, server = opened(_ok)
    store.put("k", [_DATA], condition=IfAbsent())
    store.put("k", [_DATA], condition=IfMatch("abc"))
    assert server.requests[0].headers["if-none-match"] == "*"
    assert server.requests[1].headers["if-match"] == "abc"


def test_a_batch_delete_carries_an_md5(opened: Callable):
    """Compatible servers demand it."""
    store, server = opened(lambda _: answer(200, b"<DeleteResult></DeleteResult>"))
    store.delete(["a", "b"])
    [request] = server.requests
    assert request.headers["content-md5"] == base64.b64encode(hashlib.md5(request.body).digest()).decode()
    assert b"<Key>pre/a</Key>" in request.body


def test_a_refused_key_of_a_batch_is_an_error(opened: Callable):
    """A batch answers 200 and tells refusals inside: the first is raised, and later batches are sent all the same."""
    refusal = (
        b"<DeleteResult><Error><Key>pre/7</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    store, server = opened(lambda _: answer(200, refusal))
    with pytest.raises(PermissionDeniedError) as caught:
        store.delete([str(number) for number in range(1001 + 1)])
    assert caught.value.key == "pre/7"
    assert len(server.requests) == 2


def test_an_error_in_a_completion_that_began_well_is_an_error(opened: Callable):
    """S3 sends status 200 before it knows: the body decides."""
    store, _ = opened(lambda _: answer(200, b"<Error><Code>InternalError</Code><Message>sorry</Message></Error>"))
    part = Part(index=0, token='"e"', size_bytes=1, crc32=0)
    upload = _upload(store)
    with pytest.raises(TransientError):
        upload.complete([part])


def _upload(store: ObjectStore):
    from dcp_cloud.stores.s3 import S3Upload

    return S3Upload(store.store, "pre/k", "id", checksums=True)


@pytest.mark.parametrize("verb", ["put", "get", "list"])
def test_each_request_is_sent_once(opened: Callable, verb: str):
    """The SDK does not retry: the transfer layer does, and it honours Retry-After."""
    store, server = opened(lambda _: _error(503, "SlowDown", retry_after="3"))
    calls = {
        "put": lambda: store.put("k", [_DATA]),
        "get": lambda: store.get("k", max_bytes=1),
        "list": lambda: list(store.list()),
    }
    with pytest.raises(ThrottledError) as caught:
        calls[verb]()
    assert caught.value.retry_after_s == 3
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "InvalidAccessKeyId", UnauthenticatedError),
        (403, "AccessDenied", PermissionDeniedError),
        (404, "NoSuchBucket", BucketNotFoundError),
        (400, "ExpiredToken", UnauthenticatedError),
    ],
)
def test_head_finds_out_why(opened: Callable, status: int, code: str, expected: type[Exception]):
    """The answer to HEAD has no body, so the reason is asked for with a GET."""
    store, server = opened(lambda request: answer(status) if request.method == "HEAD" else _error(status, code))
    with pytest.raises(expected):
        store.head("k")
    # For a 400 the SDK itself looks for the bucket's region in between.
    assert (server.requests[0].method, server.requests[-1].method) == ("HEAD", "GET")


def test_a_throttled_head_is_not_asked_again(opened: Callable):
    """More requests are not what a busy server needs."""
    store, server = opened(lambda _: answer(503))
    with pytest.raises(ThrottledError):
        store.head("k")
    assert len(server.requests) == 1


def _in_region(region: str) -> Answer:
    def respond(request: Request) -> bytes:
        if f"/{region}/" in request.headers["authorization"]:
            return _ok(request)
        body = f"<Error><Code>AuthorizationHeaderMalformed</Code><Region>{region}</Region></Error>".encode()
        return answer(400, body, x_amz_bucket_region=region)

    return respond


def test_a_body_follows_its_bucket_to_another_region(opened: Callable):
    """The SDK finds the region and signs again; the same buffers are sent again."""
    store, server = opened(_in_region("eu-west-1"))
    assert store.put("k", [_DATA]).etag == "abc"
    assert [request.body for request in server.requests if request.method == "PUT"] == [bytes(_DATA)] * 2
    store.put("k", [_DATA])
    assert len([request for request in server.requests if request.method == "PUT"]) == 3


def test_a_region_that_does_not_help_is_named(opened: Callable):
    """Where the redirect leads nowhere, the error names the region."""
    store, _ = opened(lambda _: _error(301, "PermanentRedirect", x_amz_bucket_region="eu-north-1"))
    with pytest.raises(WrongRegionError, match="eu-north-1"):
        store.put("k", [_DATA])


@pytest.mark.parametrize(
    ("status", "content_range", "expected"),
    [
        (200, None, InvalidRequestError),
        (206, "bytes 0-8/9", InvalidRequestError),
        (206, "bytes 3-4/5", InvalidRequestError),
        (206, "bytes 3-6/*", InvalidRequestError),
        (416, None, InvalidRequestError),
    ],
)
def test_another_range_than_the_wanted_one_is_refused(
    opened: Callable, status: int, content_range: str | None, expected: type[Exception]
):
    """What the answer says of itself is compared with what was asked for, before a byte is taken."""
    headers = {} if content_range is None else {"content_range": content_range}
    store, _ = opened(lambda _: answer(status, b"123456789", **headers))
    room = bytearray(4)
    with pytest.raises(expected):
        store.get_range("k", 3, [memoryview(room)])
    assert room == bytes(4)


def test_a_range_that_breaks_off_is_transient(opened: Callable):
    """Fewer bytes than announced are an error that may pass."""
    raw = b"HTTP/1.1 206 P\r\nconnection: close\r\ncontent-range: bytes 3-6/9\r\ncontent-length: 4\r\n\r\n34"
    store, _ = opened(lambda _: raw)
    with pytest.raises(TransientError):
        store.get_range("k", 3, [memoryview(bytearray(4))])


def test_a_body_shorter_than_the_object_is_transient(opened: Callable):
    """``get`` does not take less for the whole."""
    store, _ = opened(lambda _: answer(206, b"123", content_range="bytes 0-2/9", etag='"e"'))
    with pytest.raises(TransientError):
        store.get("k", max_bytes=9)


def test_no_credentials_are_named(opened: Callable, monkeypatch: pytest.MonkeyPatch):
    """Without credentials nothing is sent, and the hint says where to put them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    store, server = opened(_ok)
    with pytest.raises(UnauthenticatedError, match="AWS_PROFILE"):
        store.put("k", [_DATA])
    assert server.requests == []


def test_anonymous_requests_are_not_signed(opened: Callable, monkeypatch: pytest.MonkeyPatch):
    """Public buckets need no credentials."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    store, server = opened(_ok, "&anonymous=true")
    store.put("k", [_DATA])
    assert "authorization" not in server.requests[0].headers


def test_an_unknown_profile_is_a_config_error(opened: Callable):
    """The SDK's complaint about its configuration is ours too."""
    store, _ = opened(_ok, "&profile=nobody")
    with pytest.raises(ConfigError, match="nobody"):
        store.head("k")


@pytest.mark.filterwarnings("ignore:.*reached over http:UserWarning")
def test_a_bucket_can_stand_in_the_host_name(credentials, monkeypatch: pytest.MonkeyPatch):
    """Virtual addressing, seen by a proxy because the host does not exist; and path style for a custom endpoint."""
    monkeypatch.delenv("NO_PROXY")
    with stub_server(_ok) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        for style in ("virtual", "auto"):
            store = open_store(f"s3://bucket/pre?endpoint_url=http://s3.example&addressing_style={style}")
            store.put("k", [_DATA])
            store.close()
    assert [request.target for request in proxy.requests] == [
        "http://bucket.s3.example/pre/k",
        "http://s3.example/bucket/pre/k",
    ]


def _session_with_short_lived_keys() -> boto3.session.Session:
    numbers = iter(range(1000))

    def refresh() -> dict[str, str]:
        expiry = datetime.now(timezone.utc) + timedelta(seconds=1)
        key = f"AKID{next(numbers)}"
        return {"access_key": key, "secret_key": "s", "token": "t", "expiry_time": expiry.isoformat()}

    core = botocore.session.Session()
    core._credentials = RefreshableCredentials.create_from_metadata(refresh(), refresh, "test")
    return boto3.session.Session(botocore_session=core, region_name="eu-central-1")


def test_credentials_are_asked_for_each_request(opened: Callable):
    """Keys that run out are refreshed by the SDK, request by request; the session comes from the caller's factory."""
    config = S3Config(session_factory=_session_with_short_lived_keys)
    store, server = opened(_ok, config=config)
    for _ in range(3):
        store.put("k", [_DATA])
    keys = [request.headers["authorization"].split("=")[1].split("/")[0] for request in server.requests]
    assert len(set(keys)) == 3
    assert all("/eu-central-1/s3/" in request.headers["authorization"] for request in server.requests)
    assert pickle.loads(pickle.dumps(config)) == config


def test_an_error_shows_no_secret(opened: Callable):
    """Neither message nor cause of an error holds the secret key or a signature."""
    store, server = opened(lambda _: _error(403, "SignatureDoesNotMatch"))
    with pytest.raises(UnauthenticatedError) as caught:
        store.put("k", [_DATA])
    signature = server.requests[0].headers["authorization"].rpartition("Signature=")[2]
    for text in (str(caught.value), repr(caught.value), str(caught.value.__cause__)):
        assert "very-secret" not in text
        assert signature not in text
