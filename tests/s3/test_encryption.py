"""Encryption on real servers: what was asked for is what they say they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dcp_cloud.errors import InvalidRequestError, PermissionDeniedError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.testing import ObjectServer
from dcp_cloud.uri import StoreURI

_PART = bytes(range(256)) * 4096 * 5
_REST = b"the rest"


def _one_key() -> bytes:
    return bytes(range(32))


def _other_key() -> bytes:
    return bytes(range(1, 33))


@pytest.fixture
def open_with(bucket_uri: Callable[..., str]) -> Iterator[Callable[..., ObjectStore]]:
    """Open one bucket of a server with settings: ``open_with(server, **settings)``."""
    uris: dict[str, str] = {}
    stores: list[ObjectStore] = []

    def open_it(server: str, **settings: object) -> ObjectStore:
        if server not in uris:
            uris[server] = bucket_uri(server, "pre")
        stores.append(open_store(uris[server], config=S3Config(**settings)))  # type: ignore[arg-type]
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def _write(store: ObjectStore) -> None:
    store.put("put", [memoryview(_REST)])
    upload = store.create_multipart("parts")
    upload.complete([upload.put_part(0, [memoryview(_PART)]), upload.put_part(1, [memoryview(_REST)])])


def _described(store: Any, servers: Callable[[str], ObjectServer], server: str, key: str) -> dict[str, Any]:
    client = servers(server).client()
    return client.head_object(Bucket=StoreURI.parse(store.uri).bucket, Key=f"pre/{key}")


def test_objects_are_encrypted_with_the_key_that_was_named(
    open_with: Callable[..., ObjectStore], servers: Callable[[str], ObjectServer]
):
    """Single objects and those of many parts get the KMS key, and read back without saying it again."""
    store = open_with("moto", encryption="aws:kms", kms_key_id="alias/checkpoints", bucket_key=True)
    _write(store)
    for key in ("put", "parts"):
        found = _described(store, servers, "moto", key)
        assert found["ServerSideEncryption"] == "aws:kms"
        assert found["SSEKMSKeyId"] == "alias/checkpoints"
    assert _described(store, servers, "moto", "put")["BucketKeyEnabled"] is True
    assert open_with("moto").get("put", max_bytes=100).data == _REST


def test_classes_and_tags_are_the_objects_own(
    open_with: Callable[..., ObjectStore], servers: Callable[[str], ObjectServer]
):
    """Storage class, tags and metadata that a server tells are those that were given."""
    store = open_with("moto", storage_class="STANDARD_IA", tags={"a b": "c+d"}, metadata={"run": "7"})
    _write(store)
    bucket = StoreURI.parse(store.uri).bucket
    for key in ("put", "parts"):
        found = _described(store, servers, "moto", key)
        assert (found["StorageClass"], found["Metadata"]) == ("STANDARD_IA", {"run": "7"})
        tags = servers("moto").client().get_object_tagging(Bucket=bucket, Key=f"pre/{key}")["TagSet"]
        assert tags == [{"Key": "a b", "Value": "c+d"}]


def test_a_customer_key_locks_and_unlocks(open_with: Callable[..., ObjectStore]):
    """Ceph encrypts with the given key: with it everything is read and described, without it nothing is."""
    store = open_with("ceph-tls", customer_key=_one_key)
    _write(store)
    whole = _PART + _REST
    room = bytearray(len(_REST) + 5)
    store.get_range("parts", len(_PART) - 5, [memoryview(room)])
    assert room == whole[-len(room) :]
    assert store.get("put", max_bytes=100).data == _REST
    assert store.head("parts").size_bytes == len(whole)
    for settings in ({}, {"customer_key": _other_key}):
        locked = open_with("ceph-tls", **settings)
        with pytest.raises((InvalidRequestError, PermissionDeniedError)):
            locked.get("put", max_bytes=9)
        with pytest.raises((InvalidRequestError, PermissionDeniedError)):
            locked.head("parts")
