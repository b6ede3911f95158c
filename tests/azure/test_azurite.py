"""What only Azure has, on the real emulator: signatures, blocks of several writers, long deletions."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from azure.storage.blob import BlobBlock, ContainerClient, ContainerSasPermissions, generate_container_sas

from dcp_cloud.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import ObjectServer
from dcp_cloud.uri import StoreURI


@pytest.fixture
def uri(bucket_uri: Callable[..., str]) -> str:
    """A fresh container."""
    return bucket_uri("azurite", "")


@pytest.fixture
def store(uri: str) -> Any:
    """The container's store."""
    opened = open_store(uri)
    yield opened
    opened.close()


@pytest.fixture
def container(uri: str, servers: Callable[[str], ObjectServer]) -> ContainerClient:
    """The same container, as the SDK sees it."""
    return servers("azurite").client().get_container_client(StoreURI.parse(uri).bucket)


def _foreign_blocks(container: ContainerClient, key: str) -> list[str]:
    return [block.id for block in container.get_blob_client(key).get_block_list("uncommitted")[1]]


def test_a_shared_access_signature_is_enough(
    uri: str, servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
):
    """Every verb works with the rights that the documentation names."""
    access: Any = servers("azurite").access
    signature = generate_container_sas(
        access.account,
        StoreURI.parse(uri).bucket,
        account_key=access.account_key,
        permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True),
        expiry=datetime.now(timezone.utc) + timedelta(hours=1),
    )
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", signature)
    store = open_store(f"{uri}?account_url={access.endpoint_url}")
    store.put("a", [memoryview(b"1")])
    upload = store.create_multipart("b")
    assert [found.key for found in store.list_multiparts()] == ["b"]
    upload.complete([upload.put_part(0, [memoryview(b"2")])])
    store.create_multipart("c").abort()
    assert store.get("b", max_bytes=9).data == b"2"
    assert sorted(meta.key for meta in store.list()) == ["a", "b"]
    store.delete(["a", "b", "missing"])
    assert list(store.list()) == []
    store.close()


@pytest.mark.parametrize("credential", ["wrong key", "none"])
def test_without_the_right_key_nothing_is_given(
    uri: str, servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch, credential: str
):
    """Refused, and not for a moment only. (Azurite calls it AuthorizationFailure, Azure AuthenticationFailed.)"""
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "devstoreaccount1")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "d3Jvbmc=")
    anonymous = "&anonymous=true" if credential == "none" else ""
    store = open_store(f"{uri}?account_url={servers('azurite').endpoint_url}{anonymous}")
    with pytest.raises(PermissionDeniedError):
        store.put("a", [memoryview(b"1")])
    store.close()


def test_an_upload_knows_when_it_was_begun(store: ObjectStore):
    """Azure does not tell, so the block ids do: whoever sweeps can tell stale uploads from running ones."""
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    store.create_multipart("a")
    (found,) = store.list_multiparts()
    assert found.started_at is not None
    assert before <= found.started_at <= datetime.now(timezone.utc)


def test_aborting_leaves_a_committed_blob_alone(store: ObjectStore, container: ContainerClient):
    """An abort never writes where an object is; its blocks are left to expire."""
    etag = store.put("a", [memoryview(b"old")]).etag
    upload = store.create_multipart("a")
    upload.put_part(0, [memoryview(b"new")])
    upload.abort()
    assert store.head("a").etag == etag
    assert len(_foreign_blocks(container, "a")) == 2


def test_aborting_leaves_another_writers_blocks_alone(store: ObjectStore, container: ContainerClient):
    """Of two uploads to one key, one can be given up without harm to the other."""
    ours, theirs = store.create_multipart("a"), store.create_multipart("a")
    part = theirs.put_part(0, [memoryview(b"theirs")])
    ours.abort()
    theirs.complete([part])
    assert store.get("a", max_bytes=9).data == b"theirs"


def test_another_programs_upload_is_neither_listed_nor_dropped(store: ObjectStore, container: ContainerClient):
    """A sweep ends only what this package began."""
    blob = container.get_blob_client("a")
    blob.stage_block("x" * 35, b"foreign")
    assert list(store.list_multiparts()) == []
    store.create_multipart("a").abort()
    blob.commit_block_list([BlobBlock("x" * 35)])
    assert store.get("a", max_bytes=9).data == b"foreign"


def test_a_lost_upload_says_so(store: ObjectStore):
    """A commit by somebody else ends the other uploads of the key: an error, never a mixture."""
    first, second = store.create_multipart("a"), store.create_multipart("a")
    one, two = first.put_part(0, [memoryview(b"first")]), second.put_part(0, [memoryview(b"second")])
    second.complete([two])
    with pytest.raises(NotFoundError):
        first.complete([one])
    assert store.get("a", max_bytes=9).data == b"second"


def test_empty_blobs_are_no_uploads(store: ObjectStore):
    """The listing shows both alike."""
    store.put("empty", [])
    assert list(store.list_multiparts()) == []
    assert [meta.size_bytes for meta in store.list()] == [0]


def test_deleting_many(store: ObjectStore):
    """All go, however many, missing keys and odd names included."""
    keys = [f"many/{index} +%&ü" for index in range(300)]
    for key in keys:
        store.put(key, [memoryview(b"1")])
    store.delete([*keys, "many/missing"])
    assert list(store.list()) == []


def test_names_that_azure_would_change_are_refused(store: ObjectStore):
    """Azure stores ``a\\b`` as ``a/b``."""
    with pytest.raises(InvalidRequestError, match="backslash"):
        store.put("a\\b", [memoryview(b"1")])


def test_md5_is_what_the_server_computes(uri: str):
    """Azurite refuses a part whose checksum is another, over however many pieces it was computed."""
    store = open_store(f"{uri}?checksums=md5")
    content = os.urandom(100_000)
    upload = store.create_multipart("a")
    upload.complete([upload.put_part(0, [memoryview(content)[:7], memoryview(content)[7:]])])
    assert store.get("a", max_bytes=200_000).data == content
    store.close()


def test_tier_tags_and_metadata_are_stored(uri: str, container: ContainerClient):
    """What the settings say stands on the blob afterwards."""
    config = AzureConfig(access_tier="Cool", tags={"job": "a b"}, metadata={"step": "100"})
    store = open_store(uri, config=config)
    upload = store.create_multipart("a")
    upload.complete([upload.put_part(0, [memoryview(b"1")])])
    found = container.get_blob_client("a")
    properties = found.get_blob_properties()
    assert (properties.blob_tier, properties.metadata) == ("Cool", {"step": "100"})
    assert found.get_blob_tags() == {"job": "a b"}
    store.close()
