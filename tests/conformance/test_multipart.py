"""Uploads in parts."""

from __future__ import annotations

import dataclasses
import zlib
from contextlib import suppress

import pytest

from dcp_cloud.errors import ChecksumMismatchError, InvalidRequestError, NotFoundError
from dcp_cloud.stores.base import ObjectStore
from tests.conformance.data import cut, noise, part_contents, put, put_parts
from tests.conformance.oracles import Oracle


def test_parts_in_any_order_make_the_object(store: ObjectStore, oracle: Oracle):
    """Parts sent out of order are laid together by index."""
    contents = part_contents(store, 3)
    upload = store.create_multipart("a/b")
    assert upload.key == "a/b"
    parts = put_parts(upload, contents, order=(2, 0, 1))
    meta = upload.complete(parts)
    assert oracle.read("a/b") == b"".join(contents)
    assert (meta.key, meta.size_bytes) == ("a/b", sum(map(len, contents)))
    assert meta.etag == store.head("a/b").etag


def test_one_part_makes_an_object(store: ObjectStore, oracle: Oracle):
    """The only part is the last part, and may be short."""
    upload = store.create_multipart("a")
    upload.complete([upload.put_part(0, [memoryview(b"x"), memoryview(b""), memoryview(b"yz")])])
    assert oracle.read("a") == b"xyz"


def test_a_receipt_names_its_part(store: ObjectStore):
    """``put_part`` returns index and length, and the checksum that it was given."""
    upload = store.create_multipart("a")
    part = upload.put_part(4, cut(b"data", 1), crc32=zlib.crc32(b"data"))
    assert (part.index, part.size_bytes, part.crc32) == (4, 4, zlib.crc32(b"data"))
    upload.abort()


def test_a_part_sent_again_replaces_the_first(store: ObjectStore, oracle: Oracle):
    """Sending an index again is how a part is retried."""
    contents = part_contents(store, 2)
    upload = store.create_multipart("a")
    upload.put_part(0, [memoryview(noise(len(contents[0]), seed=99))])
    parts = put_parts(upload, contents, order=(1, 0))
    upload.complete(parts)
    assert oracle.read("a") == b"".join(contents)


def test_parts_of_different_lengths_make_the_object(store: ObjectStore, oracle: Oracle):
    """Parts need not be of one length."""
    size = max(store.limits.min_part_bytes, 5_000)
    contents = [noise(size + extra, seed=extra) for extra in (0, 700, 20)] + [noise(10)]
    upload = store.create_multipart("a")
    upload.complete(put_parts(upload, contents, order=(1, 3, 0, 2)))
    assert oracle.read("a") == b"".join(contents)


def test_nothing_is_visible_before_completion(store: ObjectStore):
    """An unfinished upload is no object, and leaves the one that is there alone."""
    put(store, "old", b"old")
    for key in ("old", "new"):
        store.create_multipart(key).put_part(0, [memoryview(b"unfinished")])
    assert store.get("old", max_bytes=10).data == b"old"
    assert [meta.key for meta in store.list()] == ["old"]
    with pytest.raises(NotFoundError):
        store.head("new")


def test_completion_replaces_the_object(store: ObjectStore):
    """Completing over an existing object replaces it."""
    old = put(store, "a", b"old")
    upload = store.create_multipart("a")
    new = upload.complete([upload.put_part(0, [memoryview(b"new")])])
    assert store.get("a", max_bytes=10).data == b"new"
    assert new.etag != old.etag


def test_nothing_is_left_after_abort(store: ObjectStore, oracle: Oracle):
    """An aborted upload leaves neither object nor upload; aborting again does nothing."""
    upload = store.create_multipart("a/b")
    upload.put_part(0, [memoryview(b"1")])
    upload.abort()
    upload.abort()
    assert oracle.keys() == set()
    assert list(store.list_multiparts()) == []


def test_aborting_a_completed_upload_does_nothing(store: ObjectStore):
    """An abort that comes late does no harm to the object."""
    upload = store.create_multipart("a")
    upload.complete([upload.put_part(0, [memoryview(b"1")])])
    upload.abort()
    assert store.head("a").size_bytes == 1
    assert list(store.list_multiparts()) == []


@pytest.mark.parametrize("ending", ["abort", "complete"])
def test_a_part_after_the_end_is_refused(store: ObjectStore, ending: str):
    """A part of an upload that was aborted or completed raises NotFoundError."""
    upload = store.create_multipart("a")
    part = upload.put_part(0, [memoryview(b"1")])
    if ending == "abort":
        upload.abort()
    else:
        upload.complete([part])
    with pytest.raises(NotFoundError):
        upload.put_part(0, [memoryview(b"2")])


def test_completing_an_aborted_upload_is_refused(store: ObjectStore, oracle: Oracle):
    """After an abort there is nothing to complete."""
    upload = store.create_multipart("a")
    part = upload.put_part(0, [memoryview(b"1")])
    upload.abort()
    with pytest.raises(NotFoundError):
        upload.complete([part])
    assert oracle.read("a") is None


def test_completing_twice_changes_nothing(store: ObjectStore, oracle: Oracle):
    """A repeated completion answers with the object, or that the upload is gone; the object stays."""
    upload = store.create_multipart("a")
    part = upload.put_part(0, [memoryview(b"1")])
    meta = upload.complete([part])
    with suppress(NotFoundError):
        assert upload.complete([part]).etag == meta.etag
    assert oracle.read("a") == b"1"


def test_completion_needs_the_parts_as_they_were_stored(store: ObjectStore, oracle: Oracle):
    """A receipt that is not of the stored part is refused, and the upload can still be completed rightly."""
    contents = part_contents(store, 2)
    upload = store.create_multipart("a")
    parts = put_parts(upload, contents, order=(0, 1))
    forged = dataclasses.replace(parts[1], token=parts[0].token)
    with pytest.raises(InvalidRequestError):
        upload.complete([parts[0], forged])
    assert oracle.read("a") is None
    upload.complete(parts)
    assert oracle.read("a") == b"".join(contents)


@pytest.mark.parametrize("chosen", [(), (1,), (1, 0), (0, 0)])
def test_completion_needs_all_indices_in_order(store: ObjectStore, chosen: tuple[int, ...]):
    """Receipts other than ``0..n-1`` in order are a mistake of the caller and are refused."""
    upload = store.create_multipart("a")
    parts = put_parts(upload, [b"1", b"2"], order=(0, 1))
    with pytest.raises(InvalidRequestError):
        upload.complete([parts[index] for index in chosen])
    upload.abort()


def test_a_part_with_a_wrong_checksum_is_refused(store: ObjectStore):
    """Bytes that are not what their checksum says do not become a part."""
    upload = store.create_multipart("a")
    with pytest.raises(ChecksumMismatchError):
        upload.put_part(0, [memoryview(b"data")], crc32=zlib.crc32(b"other"))
    upload.abort()


def test_two_uploads_of_one_key_do_not_mix(store: ObjectStore, oracle: Oracle):
    """Each upload has its own parts; the one that completes last is the object."""
    first, second = store.create_multipart("a"), store.create_multipart("a")
    one = first.put_part(0, [memoryview(b"first")])
    two = second.put_part(0, [memoryview(b"second")])
    second.complete([two])
    assert oracle.read("a") == b"second"
    first.complete([one])
    assert oracle.read("a") == b"first"
