"""S3 Express One Zone: sessions, hosts and what directory buckets do not have."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import ObjectStore
from tests.s3.stub import AmazonProxy, operation
from tests.s3.test_settings import customer_key
from tests.s3.verbs import DATA, call_all

Open = Callable[..., ObjectStore]

_URI = "s3://ckpt--usw2-az1--x-s3/pre"


def test_requests_carry_the_session_of_their_bucket(proxy: AmazonProxy, open_s3: Open):
    """One CreateSession with the real credentials, then all requests with the session's, bodies included."""
    call_all(open_s3(_URI, proxy_url=proxy.url))
    session, *others = proxy.requests
    assert operation(session) == "create_session"
    assert "Credential=AKIDTEST/" in session.headers["authorization"]
    assert "create_session" not in map(operation, others)
    for request in others:
        assert request.headers["x-amz-s3session-token"] == "session-token"
        assert "Credential=SESSION-KEY/" in request.headers["authorization"]
        assert "/us-west-2/s3express/aws4_request" in request.headers["authorization"]
        assert "x-amz-security-token" not in request.headers
    assert {request.headers["host"] for request in proxy.requests} == {
        "ckpt--usw2-az1--x-s3.s3express-usw2-az1.us-west-2.amazonaws.com"
    }


def test_bodies_go_as_they_do_to_any_bucket(proxy: AmazonProxy, open_s3: Open):
    """The wire sends the buffers, with the CRC-32 that directory buckets recommend, and no MD5, which they lack."""
    store = open_s3(_URI, proxy_url=proxy.url)
    store.put("k", [DATA[:3], DATA[3:]])
    store.delete(["a", "b"])
    _, put, delete = proxy.requests
    assert put.body == bytes(DATA)
    assert "x-amz-checksum-crc32" in put.headers
    assert "x-amz-checksum-crc32" in delete.headers
    assert not [request for request in proxy.requests if "content-md5" in request.headers]


def test_prefixes_end_in_a_slash(proxy: AmazonProxy, open_s3: Open):
    """Directory buckets list no other prefixes, and know no other delimiter."""
    store = open_s3(_URI, proxy_url=proxy.url)
    list(store.list("a"))
    list(store.list_prefixes("a"))
    list(store.list_multiparts())
    queries = [parse_qs(urlsplit(request.target).query) for request in proxy.requests[1:]]
    assert [query["prefix"] for query in queries] == [["pre/a/"], ["pre/a/"], ["pre/"]]
    assert {delimiter for query in queries for delimiter in query.get("delimiter", ())} == {"/"}


def test_pages_need_no_order_and_no_upload_marker(proxy: AmazonProxy, open_s3: Open):
    """The next page follows the token, or the key alone, and objects come as the bucket gives them."""
    first = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>more</NextContinuationToken>"
    first += b"<Contents><Key>pre/z</Key><Size>1</Size></Contents></ListBucketResult>"
    last = b"<ListBucketResult><IsTruncated>false</IsTruncated>"
    last += b"<Contents><Key>pre/a</Key><Size>1</Size></Contents></ListBucketResult>"
    uploads = b"<ListMultipartUploadsResult><IsTruncated>%s</IsTruncated><NextKeyMarker>pre/z</NextKeyMarker>"
    uploads += b"<Upload><Key>pre/%s</Key><UploadId>id</UploadId></Upload></ListMultipartUploadsResult>"
    as_s3 = proxy.respond

    def respond(request):
        from tests.unit.stores.stub_server import answer

        query = parse_qs(urlsplit(request.target).query)
        if operation(request) == "list_objects_v2":
            return answer(200, last if query.get("continuation-token") == ["more"] else first)
        if operation(request) == "list_multipart_uploads":
            return answer(200, uploads % ((b"false", b"a") if "key-marker" in query else (b"true", b"z")))
        return as_s3(request)

    proxy.respond = respond
    store = open_s3(_URI, proxy_url=proxy.url)
    assert [meta.key for meta in store.list()] == ["z", "a"]
    assert [upload.key for upload in store.list_multiparts()] == ["z", "a"]


@pytest.mark.parametrize(
    "settings",
    [
        {"tags": {"a": "b"}},
        {"requester_pays": True},
        {"bucket_owner_full_control": True},
        {"customer_key": customer_key},
        {"accelerate": True},
        {"anonymous": True},
    ],
)
@pytest.mark.parametrize("place", [{}, {"uri": "s3://any/pre", "access_point": "point--usw2-az1--xa-s3"}])
def test_what_directory_buckets_lack_is_refused(open_s3: Open, settings: dict[str, object], place: dict[str, str]):
    """A setting that Amazon would refuse, or pass over, is named when the store is opened."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        open_s3(**({"uri": _URI} | place | settings))
