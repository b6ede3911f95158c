"""Named compatibility settings, as far as they can be seen from the requests."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import PreconditionError
from dcp_cloud.stores.base import IfMatch, ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader
from tests.s3.stub import answer_as_s3, operation
from tests.s3.verbs import DATA
from tests.unit.stores.stub_server import Request, StubServer, answer

Open = Callable[..., ObjectStore]

_MIB = 1024**2


@pytest.mark.parametrize(
    ("compatibility", "sent"), [("none", "abc"), ("ceph", "abc"), ("minio", "abc"), ("r2", '"abc"')]
)
def test_conditions_are_written_as_the_server_reads_them(
    stub: StubServer, open_s3: Open, compatibility: str, sent: str
):
    """Ceph and DigitalOcean take version tokens without quotes only, R2 with quotes only; Amazon takes both."""
    store = open_s3(endpoint_url=stub.url, compatibility=compatibility)
    store.put("k", [DATA], condition=IfMatch("abc"))
    store.get_range("k", 0, [memoryview(bytearray(3))], if_match="abc")
    assert [request.headers["if-match"] for request in stub.requests] == [sent, sent]


@pytest.mark.parametrize(
    ("settings", "region"),
    [({}, "auto"), ({"region": "eu-west-1"}, "eu-west-1"), ({"compatibility": "none"}, "us-west-2")],
)
def test_r2_has_one_region(stub: StubServer, open_s3: Open, settings: dict[str, object], region: str):
    """R2 signs for ``auto``; a region that AWS tools have in the environment does not get in the way."""
    open_s3(**({"endpoint_url": stub.url, "compatibility": "r2"} | settings)).put("k", [DATA])
    assert f"/{region}/s3/" in stub.requests[0].headers["authorization"]


def test_r2_has_limits_of_its_own(open_s3: Open):
    """Its longest put and its longest object are a little shorter than Amazon's."""
    amazon, r2 = open_s3().limits, open_s3(compatibility="r2").limits
    assert r2.max_put_bytes == 5 * 1024 * _MIB - 5 * _MIB
    assert r2.max_object_bytes == 5 * 1024**2 * _MIB - 5 * 1024 * _MIB
    assert (r2.min_part_bytes, r2.max_parts) == (amazon.min_part_bytes, amazon.max_parts)


@pytest.mark.parametrize("server", ["ceph", "moto"])
def test_a_named_server_takes_conditions_as_they_are_sent(bucket_uri: Callable[..., str], server: str):
    """With the name of Ceph, conditional overwrites win and lose as they must, on Ceph and on what is like Amazon."""
    uri = bucket_uri(server, "pre")
    store = open_store(f"{uri}{'&' if '?' in uri else '?'}compatibility=ceph")
    first = store.put("k", [memoryview(b"1")]).etag
    second = store.put("k", [memoryview(b"2")], condition=IfMatch(first)).etag
    with pytest.raises(PreconditionError):
        store.put("k", [memoryview(b"3")], condition=IfMatch(first))
    found = bytearray(1)
    store.get_range("k", 0, [memoryview(found)], if_match=second)
    assert found == b"2"
    store.close()


_UPLOADS = """<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{}</ListMultipartUploadsResult>"""
_UPLOAD = "<Upload><Key>{}</Key><UploadId>{}</UploadId><Initiated>2026-01-31T12:00:00Z</Initiated></Upload>"


def _answer_as_minio(uploads: dict[str, str]) -> Callable[[Request], bytes]:
    """List uploads by id as MinIO's maintainers say it does: a prefix is a whole key, none stands for all."""

    def respond(request: Request) -> bytes:
        if operation(request) != "list_multipart_uploads":
            return answer_as_s3(request)
        query = parse_qs(urlsplit(request.target).query)
        [prefix] = query.get("prefix", [""])
        found = [_UPLOAD.format(key, name) for name, key in uploads.items() if prefix in ("", key)]
        return answer(200, _UPLOADS.format("".join(found)).encode())

    return respond


@pytest.mark.parametrize(("compatibility", "found"), [("none", []), ("minio", ["1", "2"])])
def test_uploads_are_listed_as_minio_can(stub: StubServer, open_s3: Open, compatibility: str, found: list[str]):
    """MinIO is asked without a prefix, and what it tells of other prefixes is left out here."""
    uploads = {"1": "pre/run/a", "2": "pre/run/b/c", "3": "pre/run", "4": "pre/runner/a", "5": "other/run/a"}
    stub.respond = _answer_as_minio(uploads)
    listed = list(open_s3(endpoint_url=stub.url, compatibility=compatibility).list_multiparts("run"))
    stub.respond = answer_as_s3
    for upload in listed:
        upload.abort()
    aborted = [request for request in stub.requests if operation(request) == "abort_multipart_upload"]
    assert [parse_qs(urlsplit(request.target).query)["uploadId"] for request in aborted] == [[name] for name in found]


def test_all_uploads_of_a_prefix_are_found_without_asking_for_it(bucket_uri: Callable[..., str]):
    """On a server that can do both, the name makes no difference."""
    uri = bucket_uri("moto", "pre")
    plain = open_store(uri)
    named = open_store(f"{uri}{'&' if '?' in uri else '?'}compatibility=minio")
    for key in ("run/a", "run/b", "runner/a", "x"):
        plain.create_multipart(key)
    for prefix in ("", "run", "none"):
        keys = [sorted(upload.key for upload in store.list_multiparts(prefix)) for store in (plain, named)]
        assert keys[0] == keys[1]
    plain.close()
    named.close()


@pytest.mark.parametrize("last", [4 * _MIB + 99, 2 * _MIB + 99], ids=["a-short-rest", "a-long-rest"])
def test_all_parts_but_the_last_are_equally_long(stub: StubServer, open_s3: Open, last: int):
    """R2 completes no other upload, so nothing that is appended may show in the lengths of parts."""
    store = open_s3(endpoint_url=stub.url, compatibility="r2")
    part_bytes = 5 * _MIB
    lengths = [3 * _MIB + 1, 1, 6 * _MIB - 7, 2 * _MIB, last]
    with Uploader(store, TransferConfig(part_size_bytes=part_bytes)) as uploader:
        upload = uploader.begin("k", expected_bytes=sum(lengths))
        for length in lengths:
            upload.append(Span.of(bytes(length)))
        upload.end()
        uploader.finish()
    sent = sorted(len(request.body) for request in stub.requests if operation(request) == "upload_part")
    assert sum(sent) == sum(lengths)
    assert len(sent) == 3
    assert sent[0] <= sent[1] == sent[2]
    assert sent[1] >= part_bytes
