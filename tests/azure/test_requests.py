"""What is sent, byte by byte and header by header."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import uuid
from collections.abc import Callable

import pytest

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectStore
from tests.azure.stub import STORED, Reply, Request, Stub, content, refusal

Open = Callable[..., ObjectStore]

_PIECES = [memoryview(b"one"), memoryview(b""), memoryview(b"two" * 100_000), memoryview(b"three")]
_BODY = b"".join(_PIECES)


def customer_key() -> bytes:
    """A customer's key."""
    return bytes(range(32))


def test_bodies_travel_in_order_and_whole(stub: Stub, open_at: Open):
    """A put and a part are one request each, with the pieces joined on the wire only."""
    store = open_at(stub)
    store.put("a", _PIECES)
    store.create_multipart("b").put_part(0, _PIECES)
    put, _mark, part = stub.requests
    assert (put.body, put.headers["content-length"]) == (_BODY, str(len(_BODY)))
    assert (part.body, part.headers["content-length"]) == (_BODY, str(len(_BODY)))
    assert put.headers["authorization"].startswith("SharedKey account:")


def test_new_blobs_get_what_the_settings_say(stub: Stub, open_at: Open):
    """Tier, tags, metadata and scope stand on whatever makes a blob; a block knows only the scope."""
    store = open_at(stub, access_tier="Cool", tags={"job": "a b"}, metadata={"step": "100"}, encryption_scope="scope-1")
    store.put("a", _PIECES)
    upload = store.create_multipart("b")
    upload.complete([upload.put_part(0, _PIECES)])
    put, _mark, part, commit = stub.requests
    for request in (put, commit):
        assert request.headers["x-ms-access-tier"] == "Cool"
        assert request.headers["x-ms-tags"] == "job=a%20b"
        assert request.headers["x-ms-meta-step"] == "100"
        assert request.headers["x-ms-encryption-scope"] == "scope-1"
    assert part.headers["x-ms-encryption-scope"] == "scope-1"
    assert "x-ms-access-tier" not in part.headers


def test_plain_settings_add_nothing(stub: Stub, open_at: Open):
    """Without settings the account's defaults hold, and no checksum is computed."""
    open_at(stub).put("a", _PIECES)
    names = set(stub.requests[0].headers)
    assert not names & {"x-ms-access-tier", "x-ms-tags", "content-md5", "x-ms-content-crc64", "x-ms-encryption-scope"}


def test_a_customer_key_stands_on_every_request_that_needs_it(tls_stub: Stub, open_at: Open):
    """The service can neither read nor write such a blob without the key."""
    store = open_at(tls_stub, customer_key=customer_key)
    store.put("a", _PIECES)
    upload = store.create_multipart("b")
    upload.complete([upload.put_part(0, _PIECES)])
    tls_stub.answer = lambda request: content(b"12", status=200 if request.method == "HEAD" else 206)
    store.get("a", max_bytes=2)
    store.head("a")
    digest = base64.b64encode(hashlib.sha256(customer_key()).digest()).decode()
    for request in tls_stub.requests:
        assert request.headers["x-ms-encryption-key"] == base64.b64encode(customer_key()).decode()
        assert request.headers["x-ms-encryption-key-sha256"] == digest
        assert request.headers["x-ms-encryption-algorithm"] == "AES256"


def _no_name() -> bytes:
    return os.environ["NO_SUCH_NAME"].encode()


def _text() -> bytes:
    return "x" * 32  # type: ignore[return-value]  # what somebody might give by mistake


@pytest.mark.parametrize("give", [_no_name, _text, bytes])
@pytest.mark.parametrize("verb", ["head", "get", "put", "create_multipart"])
def test_a_customer_key_that_is_none_is_a_setting_that_is_wrong(
    tls_stub: Stub, open_at: Open, give: Callable[[], bytes], verb: str
):
    """Whatever the function raises or gives, it is an error of this package, and nothing is sent."""
    store = open_at(tls_stub, customer_key=give)
    arguments: dict[str, dict[str, object]] = {"get": {"max_bytes": 1}, "put": {"data": _PIECES}}
    with pytest.raises(ConfigError, match="customer_key"):
        getattr(store, verb)("a", **arguments.get(verb, {}))
    assert tls_stub.requests == []


@pytest.mark.parametrize("setting", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"])
def test_nothing_of_one_account_goes_to_the_address_of_another(
    stub: Stub, open_at: Open, monkeypatch: pytest.MonkeyPatch, setting: str
):
    """Neither a signature nor what was signed with a key leaves for an address that names another account."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "mine")
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv(setting, "c2VjcmV0IGtleQ==" if setting == "AZURE_STORAGE_KEY" else "sv=2024-11-04&sig=c2VjcmV0")
    with pytest.raises(ConfigError, match="no key or signature of this account"):
        open_at(stub).put("a", _PIECES)
    assert stub.requests == []


def test_a_customer_key_is_not_sent_in_the_clear(stub: Stub, open_at: Open):
    """Over http the store refuses before anything is sent."""
    with pytest.raises(ConfigError):
        open_at(stub, customer_key=customer_key).put("a", _PIECES)
    assert stub.requests == []


@pytest.mark.parametrize(
    ("kind", "header", "value"),
    [
        ("md5", "content-md5", base64.b64encode(hashlib.md5(b"123456789").digest()).decode()),
        # The check value of CRC-64/NVME, least significant byte first.
        ("crc64", "x-ms-content-crc64", base64.b64encode(bytes.fromhex("ae8b14860a799888")[::-1]).decode()),
    ],
)
def test_checksums_go_with_the_bytes(stub: Stub, open_at: Open, kind: str, header: str, value: str):
    """The service verifies what it is sent, for puts and for parts."""
    store = open_at(stub, checksums=kind)
    store.put("a", [memoryview(b"1234"), memoryview(b"56789")])
    store.create_multipart("b").put_part(0, [memoryview(b"123456789")])
    assert [request.headers[header] for request in (stub.requests[0], stub.requests[2])] == [value, value]


def test_conditions_are_headers(stub: Stub, open_at: Open):
    """Version tokens go back in quotes, as the service gave them."""
    store = open_at(stub)
    etag = store.put("a", _PIECES, condition=IfAbsent()).etag
    store.put("a", _PIECES, condition=IfMatch(etag))
    assert stub.requests[0].headers["if-none-match"] == "*"
    assert stub.requests[1].headers["if-match"] == '"0x1"'


def test_the_version_of_the_protocol_can_be_chosen(stub: Stub, open_at: Open):
    """Older servers refuse versions that they do not know."""
    open_at(stub, api_version="2021-12-02").put("a", _PIECES)
    assert stub.requests[0].headers["x-ms-version"] == "2021-12-02"


def test_commits_name_only_uncommitted_blocks(stub: Stub, open_at: Open):
    """A commit must not find the blocks of an earlier one: that would hide a lost upload."""
    upload = open_at(stub).create_multipart("a")
    upload.complete([upload.put_part(index, [memoryview(b"x")]) for index in range(2)])
    names = [base64.b64encode(f"{upload.upload_id}-0000{index}".encode()).decode() for index in range(2)]
    text = stub.requests[-1].body.decode()
    assert "".join(f"<Uncommitted>{name}</Uncommitted>" for name in names) in text
    assert "<Latest>" not in text


def test_redirects_are_not_followed(stub: Stub, open_at: Open):
    """The service sends none, and whoever does must not get a signed request."""
    stub.answer = lambda _request: Reply(302, {"Location": stub.url})
    with pytest.raises(Exception, match="HTTP 302"):
        open_at(stub).head("a")
    assert len(stub.requests) == 1


def test_a_folder_of_a_hierarchical_account_is_no_object(stub: Stub, open_at: Open):
    """Directories are listed as empty blobs with a mark; they are neither listed nor found, nor asked for blocks."""
    listing = b"""<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>
      <Blob><Name>run</Name><Properties>
        <Etag>0x1</Etag><Content-Length>0</Content-Length><BlobType>BlockBlob</BlobType></Properties>
        <Metadata><hdi_isfolder>true</hdi_isfolder></Metadata></Blob>
      <Blob><Name>run/a</Name><Properties>
        <Etag>0x2</Etag><Content-Length>3</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>
      <Blob><Name>run/b</Name><Properties>
        <Etag>0x3</Etag><Content-Length>0</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>
    </Blobs><NextMarker/></EnumerationResults>"""

    name = base64.b64encode(b"dcp" + b"0" * 26 + b"-begin").decode()
    blocks = (
        f"<BlockList><UncommittedBlocks><Block><Name>{name}</Name><Size>1</Size></Block></UncommittedBlocks></BlockList>"
    ).encode()
    xml = {"Content-Type": "application/xml"}

    def answer(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(200, {**STORED.headers, "x-ms-meta-hdi_isfolder": "true"})
        if "comp=blocklist" in request.path:
            return refusal(409, "ResourceTypeMismatch") if "/run?" in request.path else Reply(200, xml, blocks)
        # The service gives metadata to those who ask for them.
        return Reply(
            200, xml, listing if "metadata" in request.path else re.sub(b"(?s)<Metadata>.*?</Metadata>", b"", listing)
        )

    stub.answer = answer
    store = open_at(stub)
    assert [(meta.key, meta.size_bytes) for meta in store.list()] == [("run/a", 3), ("run/b", 0)]
    assert [upload.key for upload in store.list_multiparts()] == ["run/b"]
    with pytest.raises(FileNotFoundError):
        store.head("run")


def test_requests_are_numbered_by_chance(stub: Stub, open_at: Open):
    """Numbers by clock and host (the SDK's own) cost an open file for each thread, where libuuid keeps a clock."""
    store = open_at(stub)
    store.put("a", _PIECES)
    upload = store.create_multipart("b")
    upload.complete([upload.put_part(0, _PIECES)])
    stub.answer = lambda request: content(b"12", status=200 if request.method == "HEAD" else 206)
    store.get("a", max_bytes=2)
    store.head("a")
    numbers = [request.headers["x-ms-client-request-id"] for request in stub.requests]
    assert len(set(numbers)) == len(numbers) == 6
    assert {uuid.UUID(number).version for number in numbers} == {4}
