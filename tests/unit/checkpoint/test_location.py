"""Where a writer or reader is, and how it gets elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from dcp_cloud.checkpoint.location import Location, is_checkpoint_uri
from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import ConfigError, UnknownOptionError
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.uri import StoreURI


def location(uri: Any, **options: Any) -> Location:
    return Location(uri, **({"transfer": None, "store": None, "config": None, "schemes": None} | options))


def test_moving_within_a_bucket_keeps_the_client_and_the_options() -> None:
    """Another prefix of the same bucket is served by the same client with the same settings."""
    place = location("memory://name/a?part_size=5MiB")
    assert isinstance(place.store, PrefixStore)
    bucket = place.store.store
    place.move("memory://name/b")
    assert isinstance(place.store, PrefixStore)
    assert place.store.store is bucket
    assert place.store.uri == place.uri.root == "memory://name/b"
    assert place.transfer.part_size_bytes == 5 * MIB


@pytest.mark.parametrize("store", [MemoryStore("given"), lambda uri: MemoryStore(uri.bucket)])
def test_options_are_checked_with_a_store_of_ones_own_too(store: Any) -> None:
    """A misspelt option is refused where it is written, whoever opens the store."""
    assert location("memory://name/a?part_size=5MiB", store=store).transfer.part_size_bytes == 5 * MIB
    with pytest.raises(UnknownOptionError, match="part_size"):
        location("memory://name/a?part_sise=5MiB", store=store)


def test_moving_to_another_bucket_takes_nothing_along() -> None:
    """Options belong to the place that they were written for; arguments go along."""
    place = location("memory://name/a?part_size=5MiB", transfer=TransferConfig(max_concurrency=3))
    place.move("memory://other/b")
    assert place.transfer == TransferConfig(max_concurrency=3)
    assert place.store.uri == "memory://other/b"


@pytest.mark.parametrize(
    "uri",
    [
        "gs://b/p",
        "nonsense",
        Path("s3://b/p"),
        "s3://b/p?part_size=no",
        "s3://b/p?nonsense=1",
        "s3://b/p?max_concurrency=0",
    ],
    ids=str,
)
def test_a_move_that_fails_moves_nothing(uri: Any) -> None:
    """After a refused move URI, store and settings are those from before, together."""
    place = location("s3://bucket/a?part_size=7MiB", schemes=("s3",))
    before = (place.uri, place.store, place.transfer)
    with pytest.raises(ConfigError):
        place.move(uri)
    assert (place.uri, place.store, place.transfer) == before


def test_a_given_store_serves_one_place() -> None:
    """A store that was passed cannot go elsewhere; going where it is already is no move."""
    store = MemoryStore("given")
    place = location("memory://name/a", store=store)
    place.move("memory://name/a")
    with pytest.raises(ConfigError, match="one place only"):
        place.move("memory://name/b")
    assert place.store is store
    assert place.uri.root == "memory://name/a"


def test_a_function_gives_a_store_for_each_place() -> None:
    """A function of the URI is asked for every place, and only then."""
    asked: list[str] = []

    def make(uri: StoreURI) -> MemoryStore:
        asked.append(uri.root)
        return MemoryStore(uri.prefix)

    place = location("memory://name/a", store=make)
    place.move("memory://name/b")
    place.move("memory://name/b")
    assert asked == ["memory://name/a", "memory://name/b"]


def test_a_location_pickles_as_configuration() -> None:
    """A checkpoint process gets the place, the options and the arguments."""
    place = pickle.loads(pickle.dumps(location("memory://name/a?part_size=5MiB")))
    assert place.uri.root == "memory://name/a"
    assert place.transfer.part_size_bytes == 5 * MIB
    place.move("memory://name/b")
    assert place.store.uri == "memory://name/b"


def test_a_bucket_itself_and_a_directory_are_places(tmp_path: Path) -> None:
    """A URI without a prefix and one of a directory root the store where they say."""
    assert location("memory://name").store.uri == "memory://name"
    place = location(f"file://{tmp_path}/a")
    place.move(f"file://{tmp_path}/b")
    place.store.put("key", [memoryview(b"x")])
    assert (tmp_path / "b" / "key").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("checkpoint_id", "expected"),
    [
        ("s3://bucket/run", True),
        ("file:///directory", True),
        ("memory://name/run", True),
        ("ftp://host/x", False),
        ("s3://", False),
        ("/a/path", False),
        ("relative", False),
        (Path("s3://bucket/run"), False),
        (None, False),
        (7, False),
    ],
)
def test_only_uris_are_taken_for_checkpoint_ids(checkpoint_id: Any, expected: bool) -> None:
    """torch asks class after class; paths are left to torch's own."""
    assert is_checkpoint_uri(checkpoint_id) is expected


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("s3://b/p", "s3://b/p?part_size=5MiB", True),
        ("s3://b/p", "s3://b/p?endpoint_url=http://127.0.0.1:1", False),
        ("s3://b/p?endpoint_url=http://127.0.0.1:1/", "s3://b/p?endpoint_url=http://127.0.0.1:1", True),
        ("s3://b/p?endpoint_url=http://127.0.0.1:1", "s3://b/p?endpoint_url=http://127.0.0.1:2", False),
        ("s3://b/p", "s3://b/q", False),
        ("s3://b/p", "gs://b/p", False),
        ("az://c/p?account=a", "abfss://c@a.dfs.core.windows.net/p", True),
        ("az://c/p?account_url=https://a.blob.core.windows.net", "https://a.blob.core.windows.net/c/p", True),
        ("az://c/p?account_url=http://127.0.0.1:1/a", "az://c/p?account=a", True),
        ("az://c/p?account=a", "az://c/p?account=b", False),
        ("az://c/p", "az://c/p?account=b", True),  # whose account it is stands in a connection string, perhaps
        ("memory://m/p", "memory://m/p", True),
        ("file:///a/b", "/a/b/", True),
    ],
)
def test_one_place_can_be_written_in_many_ways(
    one: str, other: str, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server or account counts, wherever it is said; in doubt, two URIs name one place."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert location(one).is_at(location(other)) is is_same
    assert location(other).is_at(location(one)) is is_same
    assert not location(one).is_below(location(other))
    child = Location(location(one).uri.child("x"), transfer=None, store=None, config=None, schemes=None)
    assert child.is_below(location(other)) is is_same


def test_the_environment_says_which_server_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket without an endpoint is on the one of the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert location("s3://b/p").is_at(location("s3://b/p?endpoint_url=http://127.0.0.1:1"))
    assert not location("s3://b/p").is_at(location("s3://b/p?endpoint_url=http://127.0.0.1:2"))
    assert not location("s3://b/p", config=S3Config(endpoint_url="http://h:2")).is_at(location("s3://b/p"))
