"""Listings of objects, prefixes and unfinished uploads."""

from __future__ import annotations

from dcp_cloud.stores.base import ObjectStore
from tests.conformance.data import noise, put
from tests.conformance.oracles import Oracle

_KEYS = ("a/b/c", "a/b/d/e", "a/bc", "b", "c/x")


def _seed(oracle: Oracle) -> None:
    for key in _KEYS:
        oracle.seed(key, key.encode())


def test_a_listing_holds_every_object_once(store: ObjectStore, oracle: Oracle):
    """Without a prefix all objects of the store are listed, at any depth, with their lengths."""
    _seed(oracle)
    found = [(meta.key, meta.size_bytes) for meta in store.list()]
    assert sorted(found) == sorted((key, len(key)) for key in _KEYS)


def test_a_prefix_matches_whole_segments(store: ObjectStore, oracle: Oracle):
    """``a/b`` lists what is below it, neither ``a/bc`` nor ``b``."""
    _seed(oracle)
    assert sorted(meta.key for meta in store.list("a/b")) == ["a/b/c", "a/b/d/e"]
    assert sorted(meta.key for meta in store.list("a")) == ["a/b/c", "a/b/d/e", "a/bc"]


def test_a_prefix_does_not_list_the_object_of_its_own_name(store: ObjectStore, oracle: Oracle):
    """``b`` is an object; below it there is nothing."""
    _seed(oracle)
    assert list(store.list("b")) == []


def test_nothing_is_listed_where_nothing_is(store: ObjectStore):
    """Listing an empty store, or an unknown prefix, yields nothing."""
    assert list(store.list()) == []
    assert list(store.list("nowhere")) == []
    assert list(store.list_prefixes()) == []
    assert list(store.list_prefixes("nowhere")) == []
    assert list(store.list_multiparts()) == []


def test_prefixes_are_the_next_level(store: ObjectStore, oracle: Oracle):
    """``list_prefixes`` names each "sub-directory" with objects below it, once and in full."""
    _seed(oracle)
    assert sorted(store.list_prefixes()) == ["a", "c"]
    assert sorted(store.list_prefixes("a")) == ["a/b"]
    assert sorted(store.list_prefixes("a/b")) == ["a/b/d"]
    assert list(store.list_prefixes("c")) == []


def test_a_prefix_goes_with_its_last_object(store: ObjectStore):
    """A prefix has no existence of its own."""
    put(store, "a/b/c", b"1")
    store.delete(["a/b/c"])
    assert list(store.list_prefixes()) == []
    assert list(store.list("a")) == []


def test_listings_go_past_the_first_page(store: ObjectStore, oracle: Oracle):
    """More objects and prefixes than a provider lists at once are all listed."""
    keys = {f"many/{number:04}/x" for number in range(1005)}
    for key in keys:
        oracle.seed(key, b"")
    assert {meta.key for meta in store.list("many")} == keys
    assert len(list(store.list("many"))) == len(keys)
    assert len(set(store.list_prefixes("many"))) == len(keys)


def test_objects_outside_the_root_are_not_seen(store: ObjectStore, oracle: Oracle):
    """A store sees its own root only: keys are relative, and neighbours whose names begin alike are not listed."""
    put(store, "own", noise(10))
    assert [meta.key for meta in store.list()] == ["own"]
    assert oracle.keys() == {"own"}


def test_unfinished_uploads_are_listed(store: ObjectStore):
    """An upload is found by its key's prefix until it ends, and can be ended by whoever found it."""
    first = store.create_multipart("a/one")
    first.put_part(0, [memoryview(b"1")])
    second = store.create_multipart("a/b/two")
    third = store.create_multipart("ab/three")
    assert sorted(upload.key for upload in store.list_multiparts()) == ["a/b/two", "a/one", "ab/three"]
    assert sorted(upload.key for upload in store.list_multiparts("a")) == ["a/b/two", "a/one"]
    for upload in store.list_multiparts("a"):
        assert upload.started_at is None or upload.started_at.tzinfo is not None
        upload.abort()
    assert [upload.key for upload in store.list_multiparts()] == ["ab/three"]
    for upload in (first, second, third):
        upload.abort()
    assert list(store.list_multiparts()) == []
