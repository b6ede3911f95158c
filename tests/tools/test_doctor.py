"""The doctor: nothing found where nothing is wrong, and each missing permission named."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.errors import NotFoundError, PermissionDeniedError
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import FaultProxy, NetworkFault
from dcp_cloud.tools.doctor import examine
from tests.cli.conftest import _quiet_logger, compare_golden, run

__all__ = ["_quiet_logger", "run"]

_STORES = ("memory", "file", "moto", "ceph", "ceph-tls", "fake-gcs", "azurite")


def _location(uri, store=None):
    return Location(uri, transfer=None, store=store, config=None, schemes=None)


@pytest.mark.parametrize("kind", _STORES)
def test_nothing_is_found_where_nothing_is_wrong(kind, bucket_uri, tmp_path):
    """On every store every check passes, and nothing is left behind."""
    uri = f"memory://{uuid.uuid4().hex}/r" if kind == "memory" else f"file://{tmp_path}/r"
    location = _location(uri if kind in ("memory", "file") else bucket_uri(kind, "r"))
    findings = list(examine(location))
    assert [finding for finding in findings if finding.status == "failed"] == []
    assert len(findings) >= 12
    assert list(location.store.list()) == []
    assert list(location.store.list_multiparts()) == []
    location.store.close()


@dataclass(frozen=True)
class _Denied:
    """Requests that are refused, the check that must find it, and what to grant."""

    server: str
    check: str
    grant: str
    where: tuple[dict[str, object], ...]
    leaves: bool = False


_S3 = {
    "list": _Denied("ceph", "list", "s3:ListBucket", ({"method": "GET", "query": {"list-type": "*"}},)),
    "put": _Denied("ceph", "put", "s3:PutObject", ({"method": "PUT", "query": {"partNumber": None}},)),
    "get": _Denied("ceph", "get", "s3:GetObject", ({"method": "GET", "path": "*.distcp"},)),
    "get, after parts": _Denied(
        "ceph", "upload in parts", "s3:GetObject", ({"method": "GET", "path": "*.distcp", "query": {"uploads": None}},)
    ),
    "parts": _Denied("ceph", "upload in parts", "s3:PutObject", ({"method": "PUT", "query": {"partNumber": "*"}},)),
    "uploads": _Denied(
        "ceph",
        "find unfinished uploads",
        "s3:ListBucketMultipartUploads",
        ({"method": "GET", "query": {"uploads": "*"}},),
    ),
    "abort": _Denied(
        "ceph",
        "find unfinished uploads",
        "s3:AbortMultipartUpload",
        ({"method": "DELETE", "query": {"uploadId": "*"}},),
        leaves=True,
    ),
    "delete": _Denied(
        "ceph",
        "delete",
        "s3:DeleteObject",
        ({"method": "DELETE", "query": {"uploadId": None}}, {"method": "POST", "query": {"delete": "*"}}),
        leaves=True,
    ),
}
_GCS = {
    "list": _Denied("fake-gcs", "list", "storage.objects.list", ({"method": "GET", "path": "/storage/v1/b/*/o"},)),
    "put": _Denied("fake-gcs", "put", "storage.objects.create", ({"method": "POST", "path": "/upload/*"},)),
    "get": _Denied("fake-gcs", "get", "storage.objects.get", ({"method": "GET", "path": "/download/*"},)),
    "delete": _Denied(
        "fake-gcs",
        "delete",
        "storage.objects.delete",
        ({"method": "POST", "path": "/batch/*"}, {"method": "DELETE"}),
        leaves=True,
    ),
}
_AZURE = {
    "list": _Denied("azurite", "list", "Reader", ({"method": "GET", "query": {"comp": "list"}},)),
    "put": _Denied("azurite", "put", "Contributor", ({"method": "PUT", "query": {"comp": None}},)),
    "get": _Denied("azurite", "get", "Reader", ({"method": "GET", "path": "*.distcp", "query": {"comp": None}},)),
    "parts": _Denied("azurite", "upload in parts", "Contributor", ({"method": "PUT", "query": {"comp": "block*"}},)),
    "uploads": _Denied(
        "azurite",
        "find unfinished uploads",
        "signature: l, r, w",
        ({"method": "GET", "query": {"comp": "list", "include": "*uncommitted*"}},),
    ),
    "delete": _Denied("azurite", "delete", "Contributor", ({"method": "DELETE"},), leaves=True),
}
_REFUSALS = {"ceph": "AccessDenied", "fake-gcs": "forbidden", "azurite": "AuthorizationPermissionMismatch"}


@pytest.mark.parametrize(
    "denied",
    [pytest.param(one, id=f"{cloud}-{name}") for cloud, table in
     (("s3", _S3), ("gcs", _GCS), ("azure", _AZURE)) for name, one in table.items()],
)  # fmt: skip
def test_each_missing_permission_is_named(denied, servers, monkeypatch):
    """With one permission removed, the check that needs it fails and says what to grant; the rest is still examined."""
    real = servers(denied.server)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    real.create_bucket(bucket)
    with FaultProxy(real.endpoint_url) as proxy:
        behind = proxy.in_front_of(real)
        for name, value in behind.environment.items():
            monkeypatch.setenv(name, value)
        code = _REFUSALS[denied.server]
        refusal = [NetworkFault("status", **where, times=None, status=403, code=code) for where in denied.where]
        proxy.set_faults(*refusal)
        location = _location(behind.uri(bucket, "run"))
        findings = {finding.check: finding for finding in examine(location)}
        assert findings[denied.check].status == "failed"
        assert denied.grant in findings[denied.check].fix
        assert findings["reach the bucket"].status == "ok"
        assert len(findings) >= 10
        proxy.set_faults()
        if not denied.leaves:
            assert list(location.store.list()) == []
        location.store.close()
    real.delete_bucket(bucket)


class _OtherUploads(MemoryStore):
    """A store whose uploads in parts are another one's."""

    uploads: Any = None

    def create_multipart(self, key):
        return self.uploads.create_multipart(key)

    def list_multiparts(self, prefix=""):
        return self.uploads.list_multiparts(prefix)


@pytest.mark.parametrize(
    ("permission", "check", "where"),
    [
        ("create", "upload in parts", {"method": "POST", "query": {"uploads": "*"}}),
        ("list", "find unfinished uploads", {"method": "GET", "query": {"uploads": "*"}}),
        ("abort", "find unfinished uploads", {"method": "DELETE", "query": {"uploadId": "*"}}),
    ],
)
def test_each_missing_permission_of_uploads_in_parts_on_google_is_named(permission, check, where, bucket_uri, servers):
    """The XML API's uploads have permissions of their own; moto speaks that API, and no other of Google's."""
    bucket = bucket_uri("moto").removeprefix("s3://").partition("/")[0]
    with FaultProxy(servers("moto").endpoint_url) as proxy:
        proxy.set_faults(NetworkFault("status", **where, times=None, status=403, code="AccessDenied"))
        google = open_store(f"gs://{bucket}/run", config=GCSConfig(endpoint_url=proxy.url, anonymous=True))
        store = _OtherUploads(uuid.uuid4().hex)
        store.uploads = google
        findings = {finding.check: finding for finding in examine(_location(f"gs://{bucket}/run", store))}
        assert proxy.strikes
        google.close()
    assert findings[check].status == "failed"
    assert f"storage.multipartUploads.{permission}" in findings[check].fix


def test_a_bucket_elsewhere_is_told(servers, monkeypatch):
    """The bucket's region is compared with the one that requests are signed for; both are named."""
    server, bucket = servers("moto"), f"test-{uuid.uuid4().hex[:12]}"
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.client().create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    found = {}
    for region in ("eu-west-1", "us-east-2"):
        location = _location(server.uri(bucket, "run", region=region))
        found[region] = next(one for one in examine(location, read_only=True) if one.check == "region")
        location.store.close()
    server.delete_bucket(bucket)
    assert (found["eu-west-1"].status, found["us-east-2"].status) == ("ok", "warning")
    assert "eu-west-1" in found["eu-west-1"].detail
    assert "us-east-2" in found["us-east-2"].detail
    assert "region=eu-west-1" in found["us-east-2"].fix


@pytest.mark.parametrize("kind", ["ceph", "fake-gcs", "azurite"])
def test_where_there_is_no_region_to_compare_that_is_said(kind, bucket_uri):
    """A server that names no region, and providers whose requests name none, are no reason to warn."""
    location = _location(bucket_uri(kind, "r"))
    (region,) = (one for one in examine(location, read_only=True) if one.check == "region")
    assert region.status in ("ok", "skipped")
    assert region.detail
    location.store.close()


def test_wrong_credentials_end_the_examination(bucket_uri, monkeypatch):
    """Where credentials are refused nothing else is tried, and the fix is about them."""
    uri = bucket_uri("ceph", "r")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (finding,) = examine(_location(uri))
    assert (finding.check, finding.status) == ("reach the bucket", "failed")
    assert finding.fix


def test_a_missing_bucket_is_told(bucket_uri, run):
    """The command ends with 1 and says what is missing."""
    uri = bucket_uri("ceph", "r").replace("s3://", "s3://no-")
    ran = run("doctor", uri)
    assert ran.code == 1
    assert "create it" in ran.out


class _Careless(MemoryStore):
    """A server that ignores conditions and whose clock is wrong."""

    def put(self, key, data, *, condition=None, crc32=None):
        meta = super().put(key, data, crc32=crc32)
        return replace(meta, modified_at=datetime.now(timezone.utc) - timedelta(hours=1))


def test_a_server_that_ignores_conditions_is_found():
    """Conditional writes that do not hold, and a clock that is off, are failures that say what they lead to."""
    findings = {one.check: one for one in examine(_location("memory://x/r", _Careless(uuid.uuid4().hex)))}
    assert "replace each other" in findings["commit only where nothing is"].detail
    assert findings["commit only over what was seen"].status == "failed"
    assert (findings["clock"].status, "NTP" in findings["clock"].fix) == ("failed", True)


def test_short_parts_and_plain_http_are_warnings(bucket_uri):
    """What works, but not well, is told without failing."""
    location = _location(bucket_uri("moto", "r", part_size="1MiB"))
    findings = {one.check: one for one in examine(location)}
    assert (findings["part length"].status, findings["part length"].fix) == ("warning", "part_size=5MiB or more")


def test_read_only_writes_nothing():
    """With --read-only nothing is stored, not even for a moment."""
    store = MemoryStore(uuid.uuid4().hex)
    findings = list(examine(_location("memory://x/r", store), read_only=True))
    assert {one.check for one in findings} == {"reach the bucket", "list", "part length"}


def test_what_people_and_scripts_read(run):
    """The output at a glance, and the document of the same findings."""
    uri = f"memory://doctor-{uuid.uuid4().hex}/run"
    ran = run("doctor", uri)
    assert ran.code == 0
    text = ran.out.replace(uri, "memory://bucket/run")
    for finding in json.loads(run("doctor", uri, "--json").out)["findings"]:
        assert finding["status"] == "ok"
        assert finding["check"] in text
    compare_golden("doctor.txt", re.sub(r"\d+ ms", "1 ms", re.sub(r"\d+ at most", "1 at most", text)))
    assert list(open_store(uri).list()) == []


class _Unlistable(MemoryStore):
    """A server on which uploads may be begun but not listed."""

    begun: ClassVar[list[Any]] = []

    def create_multipart(self, key):
        self.begun.append(super().create_multipart(key))
        return self.begun[-1]

    def list_multiparts(self, prefix=""):
        raise PermissionDeniedError("no")


def test_no_upload_is_left_where_none_can_be_listed():
    """An upload that no listing would find again is aborted by the check that began it."""
    store = _Unlistable(uuid.uuid4().hex)
    findings = {one.check: one.status for one in examine(_location("memory://x/r", store))}
    assert findings["find unfinished uploads"] == "failed"
    with pytest.raises(NotFoundError):
        store.begun[-1].put_part(0, [memoryview(b"x")])


def test_an_endpoint_from_the_environment_counts(monkeypatch):
    """Plain http is told wherever the endpoint was set."""
    monkeypatch.setenv("DCP_CLOUD_S3_ENDPOINT_URL", "http://storage.example:9000")
    findings = examine(_location("s3://bucket/r", MemoryStore(uuid.uuid4().hex)), read_only=True)
    assert [one.check for one in findings if one.status == "warning"] == ["encryption on the way"]
