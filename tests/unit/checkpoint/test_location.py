"""Where a writer or reader is, and how it gets elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from dcp_cloud.checkpoint.location import Location, is_checkpoint_uri
from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.stores.prefix import PrefixStore
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
