"""Named compatibility settings, as far as they can be seen from the requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dcp_cloud.config import TransferConfig
from dcp_cloud.stores.base import IfMatch, ObjectStore
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader
from tests.s3.stub import operation
from tests.s3.verbs import DATA
from tests.unit.stores.stub_server import StubServer

Open = Callable[..., ObjectStore]

_MIB = 1024**2


@pytest.mark.parametrize(("compatibility", "sent"), [("none", "abc"), ("r2", '"abc"')])
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


def test_all_parts_but_the_last_are_equally_long(stub: StubServer, open_s3: Open):
    """R2 completes no other upload, so nothing that is appended may show in the lengths of parts."""
    store = open_s3(endpoint_url=stub.url, compatibility="r2")
    part_bytes = 5 * _MIB
    lengths = [3 * _MIB + 1, 1, 6 * _MIB - 7, 2 * _MIB, 4 * _MIB + 99]
    with Uploader(store, TransferConfig(part_size_bytes=part_bytes)) as uploader:
        upload = uploader.begin("k", expected_bytes=sum(lengths))
        for length in lengths:
            upload.append(Span.of(bytes(length)))
        upload.end()
        uploader.finish()
    sent = sorted(len(request.body) for request in stub.requests if operation(request) == "upload_part")
    whole, rest = divmod(sum(lengths), part_bytes)
    assert sent == [rest, *[part_bytes] * whole]
