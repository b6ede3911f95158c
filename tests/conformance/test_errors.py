"""Errors: typed, naming what they concern, and fit to travel."""

from __future__ import annotations

import pickle

import pytest

from dcp_cloud.errors import DcpCloudError, NotFoundError
from dcp_cloud.stores.base import IfAbsent, IfMatch, ObjectStore
from tests.conformance.data import put


def _errors(store: ObjectStore) -> list[DcpCloudError]:
    put(store, "there", b"123")
    upload = store.create_multipart("upload")
    calls = [
        lambda: store.head("missing"),
        lambda: store.get("missing", max_bytes=1),
        lambda: store.get_range("there", 2, [memoryview(bytearray(2))]),
        lambda: store.get_range("there", 0, [memoryview(bytearray(1))], if_match="0" * 32),
        lambda: store.put("there", [memoryview(b"1")], condition=IfAbsent()),
        lambda: store.put("there", [memoryview(b"1")], condition=IfMatch("0" * 32)),
        lambda: upload.complete([]),
    ]
    errors = []
    for call in calls:
        with pytest.raises(DcpCloudError) as caught:
            call()
        errors.append(caught.value)
    upload.abort()
    return errors


def test_errors_name_the_key(store: ObjectStore):
    """Every error says which object it concerns."""
    for error in _errors(store):
        assert error.key is not None
        assert error.key.rpartition("/")[2] in ("missing", "there", "upload")


def test_errors_survive_pickling(store: ObjectStore):
    """torch gathers errors between ranks by pickle: type, text and facts arrive."""
    for error in _errors(store):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert (str(copy), copy.key, copy.cause, copy.hint) == (str(error), error.key, error.cause, error.hint)


def test_not_found_is_a_file_not_found_error(store: ObjectStore):
    """Code that knows only the builtin understands."""
    with pytest.raises(FileNotFoundError):
        store.head("missing")


def test_a_store_is_usable_after_an_error(store: ObjectStore):
    """One refused request does not spoil the store for the next one."""
    with pytest.raises(NotFoundError):
        store.get_range("missing", 10, [memoryview(bytearray(1))])
    put(store, "b", b"1")
    assert store.get("b", max_bytes=1).data == b"1"
