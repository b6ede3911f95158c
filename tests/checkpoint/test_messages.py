"""What errors call the objects that they concern."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, StoreURI, open_store
from dcp_cloud.errors import CorruptCheckpointError, DcpCloudError, IncompleteCheckpointError, UnsafeCheckpointError
from dcp_cloud.stores.base import ObjectStore

Place = Callable[..., str]


class Surprise:
    """A value of a class that nobody allowed."""


places = pytest.mark.parametrize("place", ["memory", "file", "ceph"], indirect=True)


def save(uri: str) -> tuple[ObjectStore, str]:
    """Save a tensor; give the store and the key of the data object."""
    dcp.save({"w": torch.arange(100_000.0)}, storage_writer=CloudStorageWriter(uri))
    store = open_store(uri)
    [key] = [meta.key for meta in store.list() if meta.key.endswith(".distcp")]
    return store, key


def load_error(uri: str) -> DcpCloudError:
    with pytest.raises((DcpCloudError, CheckpointException)) as caught:
        dcp.load({"w": torch.empty(100_000)}, storage_reader=CloudStorageReader(uri))
    error: BaseException = caught.value
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    assert isinstance(error, DcpCloudError)
    return error


@places
def test_a_lost_object_is_called_by_its_uri(place: Place) -> None:
    """The key of an object that is gone is its URI: the prefix stands in it once."""
    uri = place("run/step-1")
    store, key = save(uri)
    store.delete([key])
    error = load_error(uri)
    assert type(error) is IncompleteCheckpointError
    assert error.key == f"{StoreURI.parse(uri).root}/{key}"


@places
@pytest.mark.parametrize("kept", [0, 1000])
def test_a_short_object_is_called_by_its_uri(place: Place, kept: int) -> None:
    """The key of an object that is too short is its URI."""
    uri = place("run/step-1")
    store, key = save(uri)
    store.put(key, [memoryview(store.get(key, max_bytes=1000).data[:kept])])
    error = load_error(uri)
    assert type(error) is CorruptCheckpointError
    assert error.key == f"{StoreURI.parse(uri).root}/{key}"


@places
def test_a_changed_object_is_called_by_its_uri(place: Place) -> None:
    """The key of an object in which one byte is another is its URI."""
    uri = place("run/step-1")
    store, key = save(uri)
    data = bytearray(store.get(key, max_bytes=1_000_000).data)
    data[len(data) // 2] ^= 1
    store.put(key, [memoryview(data)])
    error = load_error(uri)
    assert type(error) is CorruptCheckpointError
    assert error.key == f"{StoreURI.parse(uri).root}/{key}"


@places
def test_a_value_that_may_not_be_loaded_is_called_by_its_uri(place: Place) -> None:
    """The key of an object that holds what may not be loaded is its URI."""
    uri = place("run/step-1")
    dcp.save({"w": Surprise()}, storage_writer=CloudStorageWriter(uri))
    error = load_error(uri)
    assert type(error) is UnsafeCheckpointError
    assert error.key is not None
    assert error.key.startswith(f"{StoreURI.parse(uri).root}/__0_0.")


@pytest.mark.parametrize(
    ("uri", "key", "expected"),
    [
        ("s3://b/run/step-1?region=x", "run/step-1/.metadata", "s3://b/run/step-1/.metadata"),
        ("s3://b/run/step-1", ".metadata", "s3://b/run/step-1/.metadata"),
        ("s3://b/run", "running/.metadata", "s3://b/run/running/.metadata"),
        ("s3://b", "run/.metadata", "s3://b/run/.metadata"),
        ("file:///run", "run/.metadata", "file:///run/run/.metadata"),
    ],
)
def test_an_errors_key_becomes_a_uri(uri: str, key: str, expected: str) -> None:
    """Whole keys and keys below the place both become the URI of the object."""
    assert StoreURI.parse(uri).locate(key).root == expected
