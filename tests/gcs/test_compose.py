"""Uploads as pieces that are composed: on the emulator, and the shape of the requests whose conditions it ignores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import pytest

from dcp_cloud.errors import BucketNotFoundError, InvalidRequestError, NotFoundError, TransientError
from dcp_cloud.stores import gcs_compose
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.gcs import GCSStore
from dcp_cloud.stores.gcs_checksum import crc32c_text
from dcp_cloud.stores.registry import open_bucket, open_store
from dcp_cloud.testing import ObjectServer
from dcp_cloud.uri import StoreURI
from tests.gcs.stub import Request, Stub, json_answer

Open = Callable[..., ObjectStore]


@pytest.fixture
def bucket(bucket_uri: Callable[..., str]) -> Iterator[GCSStore]:
    """A whole bucket of the emulator."""
    store = open_bucket(bucket_uri("fake-gcs"))
    assert isinstance(store, GCSStore)
    yield store
    store.close()


@pytest.fixture
def names(bucket: GCSStore, servers: Callable[[str], ObjectServer]) -> Callable[[], set[str]]:
    """All names in the bucket, as Google's own client sees them."""
    client: Any = servers("fake-gcs").client()
    name = StoreURI.parse(bucket.uri).bucket
    return lambda: {blob.name for blob in client.list_blobs(name)}


def _send(upload: Any, count: int) -> tuple[list[Any], bytes]:
    contents = [b"%d," % index * (index % 5 + 1) for index in range(count)]
    return [upload.put_part(index, [memoryview(data)]) for index, data in enumerate(contents)], b"".join(contents)


@pytest.mark.parametrize("count", [1, 32, 33, 70])
def test_any_number_of_pieces_is_composed(bucket: GCSStore, names: Callable[[], set[str]], count: int):
    """Above 32 pieces groups are composed first; afterwards only the object is there, with a right checksum."""
    upload = bucket.create_multipart("a/b")
    parts, whole = _send(upload, count)
    assert upload.complete(parts).size_bytes == len(whole)
    assert bucket.get("a/b", max_bytes=10_000).data == whole
    assert names() == {"a/b"}


def test_groups_of_groups_are_composed(
    bucket: GCSStore, names: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
):
    """Three rounds lay the pieces in the right order."""
    monkeypatch.setattr(gcs_compose, "_MAX_SOURCES", 3)
    upload = bucket.create_multipart("a")
    parts, whole = _send(upload, 20)
    upload.complete(parts)
    assert bucket.get("a", max_bytes=10_000).data == whole
    assert names() == {"a"}


def test_pieces_are_no_data(bucket: GCSStore, names: Callable[[], set[str]]):
    """No listing shows an upload under way, not even that of the whole bucket."""
    bucket.put("data/1", [memoryview(b"1")])
    bucket.create_multipart("data/2").put_part(0, [memoryview(b"2")])
    assert len(names()) == 3
    assert [meta.key for meta in bucket.list()] == ["data/1"]
    assert [meta.key for meta in bucket.list("data")] == ["data/1"]
    assert list(bucket.list_prefixes()) == ["data"]
    assert list(bucket.list_prefixes("data")) == []


def test_an_abort_leaves_nothing(bucket: GCSStore, names: Callable[[], set[str]]):
    """Neither pieces nor marker, also when another process found the upload."""
    upload = bucket.create_multipart("a/b")
    _send(upload, 3)
    [found] = bucket.list_multiparts("a")
    assert found.started_at is not None
    found.abort()
    assert names() == set()


@pytest.mark.parametrize("ending", ["abort", "complete"])
def test_a_piece_that_comes_late_removes_itself(bucket: GCSStore, names: Callable[[], set[str]], ending: str):
    """What is still under way when the upload ends does not stay behind."""
    upload = bucket.create_multipart("a")
    parts, _ = _send(upload, 2)
    if ending == "abort":
        upload.abort()
    else:
        upload.complete(parts)
    with pytest.raises(NotFoundError):
        upload.put_part(2, [memoryview(b"late")])
    assert names() == ({"a"} if ending == "complete" else set())


def _end_and_die(bucket: GCSStore, upload: gcs_compose.ComposeUpload) -> None:
    upload.objects.delete([upload._name("started")])  # what ends an upload first; the pieces would come next


def _arrive_late_and_die(bucket: GCSStore, upload: gcs_compose.ComposeUpload) -> None:
    upload.abort()
    upload.objects.insert(upload._name("00000"), [memoryview(b"late")])  # the look for the marker would come next


@pytest.mark.parametrize("die", [_end_and_die, _arrive_late_and_die])
def test_pieces_that_a_killed_process_left_can_be_found_and_dropped(
    bucket: GCSStore, names: Callable[[], set[str]], die: Callable[[GCSStore, gcs_compose.ComposeUpload], None]
):
    """Without a marker they are no upload any more, but they are listed once, with an age, and an abort drops them."""
    upload = bucket.create_multipart("a/b")
    assert isinstance(upload, gcs_compose.ComposeUpload)
    _send(upload, 3)
    die(bucket, upload)
    assert names()
    [found] = bucket.list_multiparts("a")
    assert (found.key, found.upload_id) == ("a/b", upload.upload_id)
    assert found.started_at is not None
    found.abort()
    assert names() == set()
    assert list(bucket.list_multiparts()) == []


def test_an_upload_to_the_prefix_itself_is_not_below_it(bucket: GCSStore):
    """``a`` lists uploads to ``a/b``, not to ``a``: a sweep of one run must not touch its neighbour's."""
    bucket.create_multipart("a")
    bucket.create_multipart("a/b")
    assert [upload.key for upload in bucket.list_multiparts("a")] == ["a/b"]


def test_the_marker_tells_the_age_of_an_upload(stub: Stub, open_at: Open):
    """An upload is as old as its marker; what is left of one is as old as its newest piece, whatever the order."""
    root, one, two = ".dcp-cloud-uploads/", "1" * 32, "2" * 32
    pieces = {
        f"run/a/{one}/00000": 5,
        f"run/a/{one}/00001": 6,
        f"run/a/{one}/started": 1,
        f"run/a/{two}/00000": 3,
        f"run/a/{two}/00001": 4,
        f"run/a/{two}/c1-00000": 2,
        "run/a/notes/started": 7,
        f"run/a/{one}/somebody-elses.txt": 7,
    }
    items = [
        {"name": root + name, "size": "1", "generation": "1", "updated": f"2026-01-0{day}T00:00:00Z"}
        for name, day in pieces.items()
    ]
    stub.answer = lambda _request: json_answer({"items": items})
    found = open_at(upload_method="compose").list_multiparts("run")
    ages = {upload.upload_id: upload.started_at for upload in found if isinstance(upload, gcs_compose.ComposeUpload)}
    assert {name: moment.day for name, moment in ages.items() if moment} == {one: 1, two: 4}


def test_a_completion_that_broke_off_while_cleaning_up_goes_on(bucket: GCSStore, names: Callable[[], set[str]]):
    """The object is there, some pieces are gone: completing again finds its own work and cleans up the rest."""
    upload = bucket.create_multipart("a")
    assert isinstance(upload, gcs_compose.ComposeUpload)
    parts, whole = _send(upload, 3)
    upload._compose(parts)
    bucket.delete([upload._name("00001")])
    meta = upload.complete(parts)
    assert meta.size_bytes == len(whole)
    assert bucket.get("a", max_bytes=1000).data == whole
    assert names() == {"a"}


def test_a_missing_piece_is_not_composed_over(bucket: GCSStore):
    """A piece that somebody deleted is an error; the object that was there stays."""
    bucket.put("a", [memoryview(b"old")])
    upload = bucket.create_multipart("a")
    assert isinstance(upload, gcs_compose.ComposeUpload)
    parts, _ = _send(upload, 3)
    bucket.delete([upload._name("00001")])
    with pytest.raises(InvalidRequestError):
        upload.complete(parts)
    assert bucket.get("a", max_bytes=100).data == b"old"
    upload.abort()


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.head("a"),
        lambda store: store.get("a", max_bytes=1),
        lambda store: store.get_range("a", 0, [memoryview(bytearray(1))]),
        lambda store: store.put("a", [memoryview(b"1")]),
        lambda store: store.create_multipart("a"),
        lambda store: store.delete(["a"]),
        lambda store: store.delete(["a", "b"]),
        lambda store: list(store.list()),
        lambda store: list(store.list_prefixes()),
        lambda store: list(store.list_multiparts()),
    ],
)
def test_a_missing_bucket_is_named(bucket_uri: Callable[..., str], call: Callable[[ObjectStore], object]):
    """Every verb tells a missing bucket from a missing object."""
    bucket_uri("fake-gcs")
    store = open_store("gs://no-such-bucket?upload_method=compose")
    with pytest.raises(BucketNotFoundError):
        call(store)
    store.close()


class Composing:
    """Enough of the JSON API for one upload; the emulator ignores the conditions that are looked at here."""

    def __init__(self, **made: str) -> None:
        self._made = made
        self._stored: dict[str, dict[str, str]] = {}

    def __call__(self, request: Request) -> Any:
        if request.path.startswith("/upload"):
            return json_answer(self._insert(request))
        if request.path.endswith("/compose"):
            return json_answer({"name": "a", "generation": "99", "size": "8", **self._made})
        if request.path.endswith("/o"):
            return json_answer({"items": list(self._stored.values())})
        if request.path.startswith("/batch"):
            self._stored.clear()
            return json_answer({})
        return json_answer(next(iter(self._stored.values()), {"name": "x", "generation": "1"}))

    def _insert(self, request: Request) -> dict[str, str]:
        resource = json.loads(request.body.split(b"\r\n\r\n")[1].split(b"\r\n--")[0])
        generation = str(100 + len(self._stored))
        found = {"name": resource["name"], "generation": generation, "crc32c": resource["crc32c"], "size": "4"}
        self._stored[resource["name"]] = found
        return found


def test_the_pieces_that_were_stored_are_the_ones_that_are_composed(stub: Stub, open_at: Open):
    """A compose names each piece's generation, and carries key, class, metadata and payer as a put does."""
    stub.answer = Composing(crc32c="AAAAAA==")
    store = open_at(
        upload_method="compose",
        kms_key_name="k/1",
        storage_class="NEARLINE",
        user_project="payer",
        metadata={"run": "7"},
    )
    upload = store.create_multipart("a")
    parts = [upload.put_part(index, [memoryview(b"data")]) for index in range(2)]
    with pytest.raises(TransientError, match="changed on its way"):
        upload.complete(parts)  # the answer has another checksum than the parts together
    request = stub.last
    assert (request.method, request.path) == ("POST", "/storage/v1/b/bucket/o/a/compose")
    assert request.query["kmsKeyName"] == "k/1"
    assert request.query["userProject"] == "payer"
    document = request.json()
    assert [(source["generation"], source["objectPreconditions"]) for source in document["sourceObjects"]] == [
        ("101", {"ifGenerationMatch": "101"}),
        ("102", {"ifGenerationMatch": "102"}),
    ]
    assert [source["name"].rpartition("/")[2] for source in document["sourceObjects"]] == ["00000", "00001"]
    assert document["destination"]["storageClass"] == "NEARLINE"
    assert document["destination"]["metadata"]["run"] == "7"


def test_the_object_has_the_length_of_its_parts(stub: Stub, open_at: Open):
    """A composed object of another length is not accepted, whatever its checksum."""
    right = crc32c_text(google_crc32c.value(b"datadata"))
    stub.answer = Composing(crc32c=right, size="9")
    upload = open_at(upload_method="compose").create_multipart("a")
    parts = [upload.put_part(index, [memoryview(b"data")]) for index in range(2)]
    with pytest.raises(TransientError, match="9 bytes instead of 8"):
        upload.complete(parts)
