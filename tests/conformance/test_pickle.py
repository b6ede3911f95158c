"""Stores and uploads travel between processes as configuration."""

from __future__ import annotations

import pickle

from dcp_cloud.stores.base import ObjectStore
from tests.conformance.conftest import Place
from tests.conformance.data import part_contents, put, put_parts
from tests.conformance.oracles import Oracle


def test_a_used_store_pickles(store: ObjectStore):
    """A copy of a store that was in use sees the same objects."""
    put(store, "a", b"1")
    copy: ObjectStore = pickle.loads(pickle.dumps(store))
    assert copy.get("a", max_bytes=1).data == b"1"
    assert (copy.uri, copy.limits) == (store.uri, store.limits)
    copy.close()


def test_an_upload_goes_on_elsewhere(store: ObjectStore, oracle: Oracle):
    """An upload can be begun here, continued by a copy and completed by another one."""
    contents = part_contents(store, 2)
    upload = store.create_multipart("a")
    [first] = put_parts(upload, contents, order=(0,))
    copy = pickle.loads(pickle.dumps(upload))
    second = put_parts(copy, contents, order=(1,))[0]
    pickle.loads(pickle.dumps(copy)).complete(pickle.loads(pickle.dumps([first, second])))
    assert oracle.read("a") == b"".join(contents)


def test_a_pickle_holds_no_secret(store: ObjectStore, place: Place):
    """Credentials stay in the process that found them."""
    put(store, "a", b"1")
    data = pickle.dumps(store)
    assert place.secret is None or place.secret.encode() not in data
    assert place.secret is None or place.secret not in repr(store)


def test_a_closed_store_may_be_used_again(store: ObjectStore):
    """``close`` releases connections; the store connects anew."""
    put(store, "a", b"1")
    store.close()
    assert store.get("a", max_bytes=1).data == b"1"
    store.close()
    store.close()


def test_the_uri_may_be_shown(store: ObjectStore, place: Place):
    """A store's URI is what it was opened with, without options."""
    assert store.uri == place.uri.partition("?")[0]
