"""Which checkpoints a listing shows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from dcp_cloud.checkpoint.catalog import explain_absence, list_checkpoints, step_of
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.errors import CheckpointNotFoundError, IncompleteCheckpointError, NotFoundError, TransientError
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.stores.memory import MemoryStore

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
ID = "0123456789abcdef" * 2


class Listing(MemoryStore):
    """A store that lists given keys, in any order, and counts the requests; key ``n`` has 10**n bytes."""

    def __init__(self, *keys: str, failures: int = 0) -> None:
        super().__init__("listing")
        self.keys = keys
        self.failures = failures
        self.requests: list[str] = []

    @property
    def uri(self) -> str:
        return "s3://bucket/run"

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        self.requests.append(f"list {prefix}")
        order = list(range(len(self.keys)))
        random.shuffle(order)
        for place, number in enumerate(order):
            if self.failures and place == len(order) // 2:
                self.failures -= 1
                raise TransientError("lost")
            key = self.keys[number]
            if key.startswith(f"{prefix}/" if prefix else ""):
                yield ObjectMeta(key=key, size_bytes=10**number, etag="e", modified_at=T0 + timedelta(seconds=number))

    def head(self, key: str) -> ObjectMeta:
        raise AssertionError("no object is looked at one by one")

    get = head  # type: ignore[assignment]


def states(store: MemoryStore, **options: str) -> list[tuple[str, int | None, str, int]]:
    return [(entry.path, entry.step, entry.state, entry.objects) for entry in list_checkpoints(store, **options)]


def test_states_steps_sizes_and_times_come_from_one_listing():
    """One listing tells name, step, state, size, objects and the time of the commit, whatever its order."""
    store = Listing(
        f"step-9/__0_0.{ID}.distcp",
        f"step-9/__1_0.{ID}.distcp",
        "step-9/.metadata",
        f"step-10/__0_0.{ID}.distcp",
        "local-3/__0_0.distcp",
        "local-3/__0.metadata",
        "local-3/__1.metadata",
        "log.txt",
        "data/part-0.parquet",
    )
    entries = list_checkpoints(store)
    assert [(entry.name, entry.step, entry.state) for entry in entries] == [
        ("local-3", 3, "rank-local"),
        ("step-9", 9, "complete"),
        ("step-10", 10, "incomplete"),
    ]
    local, nine, ten = entries
    assert (nine.size_bytes, nine.objects, nine.uri) == (111, 2, "s3://bucket/run/step-9")
    assert nine.committed_at == nine.modified_at == T0 + timedelta(seconds=2)
    assert (local.ranks, local.objects, local.committed_at) == (2, 1, T0 + timedelta(seconds=6))
    assert (ten.committed_at, ten.modified_at) == (None, T0 + timedelta(seconds=3))
    assert store.requests == ["list "]


def test_the_prefix_itself_may_be_a_checkpoint():
    """A checkpoint at the listed prefix has an empty path; those below it stand beside it."""
    store = Listing(".metadata", f"__0_0.{ID}.distcp", "a/step-1/.metadata", "a/step-1/__0_0.distcp")
    assert states(store) == [("", None, "complete", 1), ("a/step-1", 1, "complete", 1)]


def test_only_the_asked_prefix_is_listed():
    """With a prefix, paths are relative to it."""
    store = Listing("a/step-1/.metadata", "ab/step-2/.metadata")
    assert states(store, prefix="a") == [("step-1", 1, "complete", 0)]
    assert list_checkpoints(store, prefix="a")[0].uri == "s3://bucket/run/a/step-1"


def test_data_that_other_writers_spread_belongs_to_their_checkpoint():
    """Foreign data below a committed checkpoint is that checkpoint's; an unfinished save of ours is its own."""
    store = Listing(".metadata", "shards/7/__0_0.distcp", f"step-5/__0_0.{ID}.distcp", "other/__0_0.distcp")
    assert states(store) == [("", None, "complete", 2), ("step-5", 5, "incomplete", 1)]


def test_a_listing_that_breaks_off_is_taken_again_from_the_start():
    """Half a listing is not half a result: what was counted before the failure is not counted twice."""
    store = Listing("step-1/.metadata", "step-1/__0_0.distcp", "step-1/__1_0.distcp", failures=2)
    transfer = TransferConfig(retry=RetryConfig(base_delay_s=0.0))
    (entry,) = list_checkpoints(store, transfer=transfer)
    assert (entry.objects, entry.size_bytes, len(store.requests)) == (2, 111, 3)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-100", 100),
        ("epoch=3-step=1200", 1200),
        ("iter_0005", 5),
        ("final", None),
        ("", None),
        ("x" + "9" * 5000, None),
        ("v2", 2),
    ],
)
def test_the_step_is_the_last_number_of_the_name(name, step):
    """The step is read from the name alone; an absurd number is none."""
    assert step_of(name) == step


@pytest.mark.parametrize(
    ("keys", "kind", "text"),
    [
        (("step-9/.metadata", "step-10/.metadata"), CheckpointNotFoundError, "Use s3://bucket/run/step-10,"),
        ((f"__0_0.{ID}.distcp",), IncompleteCheckpointError, "1 data object but no .metadata"),
        (("__0.metadata", "__1.metadata"), CheckpointNotFoundError, "2 commits of one rank each"),
        (("readme.txt",), CheckpointNotFoundError, "there are other objects here"),
        ((), CheckpointNotFoundError, "no such object"),
    ],
)
def test_what_is_there_instead_of_a_checkpoint_is_explained(keys, kind, text):
    """The error for a place without a commit says what there is, and what to do."""
    error = explain_absence(Listing(*keys), uri="s3://bucket/run", cause=NotFoundError("no such object"))
    assert type(error) is kind
    assert text in str(error)
    assert error.hint
