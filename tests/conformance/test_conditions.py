"""Conditional puts and deletes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from dcp_cloud.errors import AlreadyExistsError, PreconditionError, TransientError
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectStore, PutCondition
from tests.conformance.data import put
from tests.conformance.oracles import Oracle

_RACERS = 16


def test_create_only_stores_where_nothing_is(store: ObjectStore, oracle: Oracle):
    """``IfAbsent`` stores a new object."""
    meta = store.put("a/b", [memoryview(b"1")], condition=IfAbsent())
    assert oracle.read("a/b") == b"1"
    assert meta.etag == store.head("a/b").etag


def test_create_only_leaves_what_is_there(store: ObjectStore, oracle: Oracle):
    """``IfAbsent`` on an existing object raises AlreadyExistsError, and the object stays."""
    oracle.seed("a", b"old")
    with pytest.raises(AlreadyExistsError):
        store.put("a", [memoryview(b"new")], condition=IfAbsent())
    assert oracle.read("a") == b"old"


def test_create_only_stores_after_a_delete(store: ObjectStore):
    """A deleted object is absent."""
    put(store, "a", b"1")
    store.delete(["a"])
    store.put("a", [memoryview(b"2")], condition=IfAbsent())
    assert store.get("a", max_bytes=10).data == b"2"


def test_a_known_version_is_replaced(store: ObjectStore, oracle: Oracle):
    """``IfMatch`` with the token of what is there stores, again and again."""
    oracle.seed("a", b"0")
    etag = store.head("a").etag
    for number in range(1, 4):
        etag = store.put("a", [memoryview(b"%d" % number)], condition=IfMatch(etag)).etag
    assert oracle.read("a") == b"3"


def test_another_version_is_not_replaced(store: ObjectStore, oracle: Oracle):
    """``IfMatch`` with the token of a replaced version raises PreconditionError, and the object stays."""
    old = put(store, "a", b"1").etag
    put(store, "a", b"2")
    with pytest.raises(PreconditionError):
        store.put("a", [memoryview(b"3")], condition=IfMatch(old))
    assert oracle.read("a") == b"2"


def test_a_deleted_version_is_not_replaced(store: ObjectStore, oracle: Oracle):
    """``IfMatch`` where nothing is raises PreconditionError and stores nothing."""
    old = put(store, "a", b"1").etag
    store.delete(["a"])
    with pytest.raises(PreconditionError):
        store.put("a", [memoryview(b"2")], condition=IfMatch(old))
    assert oracle.read("a") is None


@pytest.mark.parametrize("wanted", ["absent", "match"])
def test_of_many_at_once_exactly_one_wins(store: ObjectStore, oracle: Oracle, wanted: str):
    """Sixteen conditional puts at once: one is stored, fifteen are told so, and the object is the winner's."""
    condition: PutCondition = IfAbsent()
    if wanted == "match":
        condition = IfMatch(put(store, "a", b"old").etag)
    refusal = AlreadyExistsError if wanted == "absent" else PreconditionError
    barrier = Barrier(_RACERS)

    def race(number: int) -> bool:
        barrier.wait()
        while True:
            try:
                store.put("a", [memoryview(b"%d" % number)], condition=condition)
            except refusal:
                return False
            except TransientError:
                continue  # a conflict that the server cannot decide yet
            return True

    with ThreadPoolExecutor(_RACERS) as pool:
        outcomes = list(pool.map(race, range(_RACERS)))
    assert outcomes.count(True) == 1
    assert oracle.read("a") == b"%d" % outcomes.index(True)


def test_a_known_version_is_deleted(store: ObjectStore, oracle: Oracle):
    """``delete`` with the token of what is there deletes it, wherever the token comes from."""
    for number, etag_of in enumerate(
        (
            lambda: store.put("a", [memoryview(b"new")]).etag,
            lambda: store.head("a").etag,
            lambda: store.get("a", max_bytes=1).meta.etag,
            lambda: next(store.list()).etag,
        )
    ):
        put(store, "a", b"%d" % number)
        store.delete(["a"], if_match=etag_of())
        assert oracle.read("a") is None


def test_another_version_is_not_deleted(store: ObjectStore, oracle: Oracle):
    """``delete`` with the token of a replaced version raises PreconditionError, and the object stays."""
    old = put(store, "a", b"1").etag
    put(store, "a", b"2")
    with pytest.raises(PreconditionError):
        store.delete(["a"], if_match=old)
    assert oracle.read("a") == b"2"


def test_deleting_a_version_that_is_gone_succeeds(store: ObjectStore):
    """``delete`` on condition where nothing is does nothing, so a request whose answer was lost can be repeated."""
    old = put(store, "a", b"1").etag
    store.delete(["a"], if_match=old)
    store.delete(["a"], if_match=old)
    store.delete(["never/was"], if_match=old)
    assert not list(store.list())
