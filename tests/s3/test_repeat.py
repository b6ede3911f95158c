"""Parts and ranges that are made without the SDK are the requests that it would have made."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3.session
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dcp_cloud.errors import DcpCloudError, NotFoundError, PermissionDeniedError, PreconditionError, ThrottledError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.stores.s3_config import S3Config
from tests.s3.stub import answer_as_s3, operation
from tests.unit.stores.stub_server import Request, StubServer, answer, stub_server

# These differ in each request, or by the session, whoever makes it.
_FRESH = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "user-agent"}


def _key() -> bytes:
    return b"0123456789abcdef" * 2


def _session() -> boto3.session.Session:
    return boto3.session.Session()


def use(store: ObjectStore) -> None:
    """Send three parts and read three ranges, with lengths, keys and conditions that differ."""
    for number in range(3):
        key = f"run {number}/a+b=ü.distcp"
        upload = store.create_multipart(key)
        data = memoryview(b"x" * (number + 1))
        upload.put_part(number, [data], crc32=zlib.crc32(data))
        buffer = memoryview(bytearray(number + 1))
        store.get_range(key, number, [buffer])
        store.get_range(key, number, [buffer], if_match="e")


def shape(request: Request) -> tuple[object, ...]:
    """Give all of a request that has to be equal; the order of a query means nothing."""
    parts = urlsplit(request.target)
    headers = {name: value for name, value in request.headers.items() if name not in _FRESH}
    signed = request.headers["authorization"].split("SignedHeaders=")[1].split(",")[0]
    scope = request.headers["authorization"].split("/", 2)[2].split(",")[0]
    return request.method, parts.path, parse_qs(parts.query), headers, request.body, signed, scope


def check_signature(request: Request, site: str, secret_key: str = "very-secret") -> None:
    """Compare a signature with what the SDK's own signer makes of the request that arrived."""
    authorization = request.headers["authorization"]
    credential, names, signature = (part.partition("=")[2] for part in authorization.split(", "))
    access_key, _, region, service, _ = credential.removeprefix("AWS4-HMAC-SHA256 Credential=").split("/")
    headers = {name: request.headers[name] for name in names.split(";")}
    signer = S3SigV4Auth(Credentials(access_key, secret_key), service, region)
    sent = AWSRequest(request.method, site + request.target, headers=headers)
    sent.context["timestamp"] = request.headers["x-amz-date"]
    if "x-amz-content-sha256" not in headers:
        sent.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    assert signer.signature(signer.string_to_sign(sent, signer.canonical_request(sent)), sent) == signature


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"requester_pays": True, "expected_bucket_owner": "123456789012"},
        {"customer_key": _key},
        {"checksums": "when_required"},
        {"encryption": "aws:kms", "kms_key_id": "k", "storage_class": "GLACIER_IR", "tags": {"a": "b"}},
        {"compatibility": "r2"},
        {"addressing_style": "path", "region": "eu-west-1"},
    ],
    ids=lambda settings: "-".join(settings) or "defaults",
)
def test_requests_equal_those_of_the_sdk(
    tls_stub: StubServer, open_s3: Callable[..., ObjectStore], settings: dict[str, object]
) -> None:
    """With every kind of setting: the same method, target, headers and body, signed over the same headers, rightly."""
    use(open_s3(endpoint_url=tls_stub.url, **settings))
    ours = [request for request in tls_stub.requests if operation(request) in ("upload_part", "get_object")]
    tls_stub.requests.clear()
    use(open_s3(endpoint_url=tls_stub.url, session_factory=_session, **settings))  # the SDK makes all requests
    theirs = [request for request in tls_stub.requests if operation(request) in ("upload_part", "get_object")]
    assert len(ours) == len(theirs) == 9
    assert [shape(request) for request in ours] == [shape(request) for request in theirs]
    for request in ours:
        check_signature(request, tls_stub.url)
    assert len({request.headers["amz-sdk-invocation-id"] for request in ours}) == 9


def test_the_sdk_makes_one_request_of_each_kind(stub: StubServer, open_s3: Callable[..., ObjectStore]) -> None:
    """That is the point of it: the SDK is asked once for parts, once for ranges, once for ranges with a condition."""
    store = open_s3(endpoint_url=stub.url)
    asked: list[str] = []
    client = store.store.client  # type: ignore[attr-defined]
    client._connect().client.meta.events.register(
        "before-send.s3", lambda request, **kwargs: asked.append(request.method)
    )
    use(store)
    assert sorted(asked) == ["GET", "GET", "POST", "POST", "POST", "PUT"]


def test_credentials_that_expire_are_renewed_between_requests(
    stub: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is signed with the credentials of that moment, session token included."""
    count, program = tmp_path / "count", tmp_path / "credentials.py"
    soon = (datetime.now(timezone.utc) + timedelta(seconds=30)).isoformat()
    program.write_text(
        f"import json, pathlib\n"
        f"count = pathlib.Path({str(count)!r})\n"
        f"number = int(count.read_text()) + 1 if count.exists() else 1\n"
        f"count.write_text(str(number))\n"
        f"print(json.dumps({{'Version': 1, 'AccessKeyId': f'AKID{{number}}', 'SecretAccessKey': f's{{number}}', "
        f"'SessionToken': f't{{number}}', 'Expiration': {soon!r}}}))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[profile short]\nregion = us-west-2\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    store = open_store("s3://bucket/pre", config=S3Config(endpoint_url=stub.url, profile="short"))
    for _ in range(3):
        store.get_range("k", 0, [memoryview(bytearray(4))])
    store.close()
    tokens = [request.headers["x-amz-security-token"] for request in stub.requests]
    assert len(set(tokens)) == 3
    for request, token in zip(stub.requests, tokens, strict=True):
        assert f"Credential=AKID{token[1:]}/" in request.headers["authorization"]
        check_signature(request, stub.url, f"s{token[1:]}")


def _error(status: int, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code><Message>why</Message></Error>".encode())


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", ThrottledError),
        (404, "NoSuchKey", NotFoundError),
        (412, "PreconditionFailed", PreconditionError),
    ],
)
def test_errors_mean_what_they_mean_to_the_sdk(
    open_s3: Callable[..., ObjectStore], status: int, code: str, expected: type[DcpCloudError]
) -> None:
    """A refusal that has nothing to do with the signature is raised at once, with the server's words."""
    with stub_server(lambda request: _error(status, code)) as server:
        store = open_s3(endpoint_url=server.url)
        with pytest.raises(expected, match="why"):
            store.get_range("k", 0, [memoryview(bytearray(4))])
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 403])
def test_what_the_server_does_not_like_is_left_to_the_sdk(open_s3: Callable[..., ObjectStore], status: int) -> None:
    """A request that may have been made wrongly is made by the SDK, and so are all that follow."""
    refused = [True]

    def respond(request: Request) -> bytes:
        return _error(status, "SignatureDoesNotMatch") if refused and refused.pop() else answer_as_s3(request)

    with stub_server(respond) as server:
        store = open_s3(endpoint_url=server.url)
        buffer = memoryview(bytearray(4))
        store.get_range("k", 0, [buffer])
        assert bytes(buffer) == b"0123"
        store.get_range("k", 2, [buffer])
        assert bytes(buffer) == b"2345"
        assert len(server.requests) == 3


def test_what_the_sdk_is_refused_too_is_an_error(open_s3: Callable[..., ObjectStore]) -> None:
    """If the server likes no request, its answer is the error."""
    with stub_server(lambda request: _error(403, "AccessDenied")) as server:
        store = open_s3(endpoint_url=server.url)
        with pytest.raises(PermissionDeniedError):
            store.get_range("k", 0, [memoryview(bytearray(4))])
