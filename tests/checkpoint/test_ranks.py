"""Several ranks: sharded tensors, other numbers of ranks, and what everybody hears when one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dcp_cloud import StoreURI, open_store
from dcp_cloud.errors import CheckpointNotFoundError
from tests.checkpoint import rank_jobs
from tests.checkpoint.conftest import CLOUDS, SERVERS, every_server
from tests.checkpoint.states import equal
from tests.support.ranks import RankError, run_ranks

Place = Callable[..., str]


@every_server
def test_a_checkpoint_loads_on_any_number_of_ranks(place: Place) -> None:
    """Saved by two ranks, loaded by one and by three: every shard lands where it belongs."""
    uri = place()
    run_ranks(2, rank_jobs.save_tensors, uri, 1, {})
    for world_size in (1, 3):
        assert run_ranks(world_size, rank_jobs.load_tensors, uri, 1) == [[]] * world_size


def test_four_two_one_three(place: Place) -> None:
    """A model and its optimizer move from four ranks to two, to one and to three without changing a bit."""
    first = place()
    saved = run_ranks(4, rank_jobs.train_and_save, first)[0]
    for world_size in (2, 1, 3):
        loaded = run_ranks(world_size, rank_jobs.load_trained, first)
        assert all(equal(saved, state) for state in loaded)


@pytest.mark.skipif(not rank_jobs.HAS_RANK_LOCAL_SAVES, reason="dcp.save has no use_collectives before torch 2.9")
def test_ranks_may_save_without_collectives(place: Place) -> None:
    """Each rank's own commit is found by the same rank."""
    uri = place()
    run_ranks(2, rank_jobs.save_tensors, uri, 1, {"use_collectives": False})
    assert run_ranks(2, rank_jobs.load_tensors, uri, 1) == [[], []]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "refuse", "verb": "put_part", "nth": 2},
        {"kind": "fail", "verb": "put_part", "times": None},
        {"kind": "refuse", "verb": "complete"},
        {"kind": "refuse", "verb": "create_multipart"},
    ],
    ids=["part", "part-forever", "complete", "create"],
)
def test_a_failing_part_fails_the_save_on_every_rank(place: Place, fault: dict) -> None:
    """No rank is told of a success, nothing is committed, the failing rank leaves no upload and no object."""
    uri = place(max_attempts="3", base_delay="1ms")
    outcomes = run_ranks(2, rank_jobs.save_with_fault, uri, 1, fault)
    assert "ok" not in outcomes
    assert outcomes[0] == outcomes[1]
    store = open_store(uri)
    assert not [meta for meta in store.list() if meta.key == ".metadata" or meta.key.startswith("__1_")]
    assert not list(store.list_multiparts())
    assert set(run_ranks(2, rank_jobs.load_outcome, uri)) == {"IncompleteCheckpointError"}


@every_server
def test_a_rank_killed_before_the_commit_leaves_the_old_checkpoint(place: Place) -> None:
    """kill -9 between the data and the commit: the checkpoint that was there is what is loaded."""
    uri = place()
    run_ranks(2, rank_jobs.save_tensors, uri, 1, {})
    with pytest.raises(RankError):
        run_ranks(2, rank_jobs.save_and_die, uri, 1, timeout_s=30)
    assert run_ranks(2, rank_jobs.load_tensors, uri, 1) == [[], []]


@pytest.mark.parametrize("kind", ["own directory", "own memory"])
@pytest.mark.parametrize("how", ["dcp", "manager", "safetensors"])
def test_ranks_that_save_to_different_places_are_told(kind: str, how: str, tmp_path: Path) -> None:
    """What a rank stored on a disk of its own node is in no checkpoint: all ranks hear it, and nothing is committed."""
    uri = f"file://{tmp_path}/node{{rank}}/run" if kind == "own directory" else "memory://node/run"
    for outcome in run_ranks(2, rank_jobs.save_elsewhere, uri, how):
        assert "rank 1 stored its data elsewhere" in outcome
        assert "give all ranks the same URI" in outcome.replace("Give", "give")
    assert not [path for path in tmp_path.rglob("*") if path.name in {".metadata", "dcp_cloud.shards.json"}]


_NEEDS_PROCESS_SAVES = pytest.mark.skipif(not rank_jobs.HAS_PROCESS_SAVES, reason="torch 2.6 saves in threads only")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *((server, "thread") for server in SERVERS),
        # Each rank starts a process, which takes seconds: once for each protocol.
        *(pytest.param(server, "process", marks=_NEEDS_PROCESS_SAVES) for server in CLOUDS),
    ],
    indirect=["place"],
)
def test_background_saves_succeed_and_fail_by_themselves(place: Place, kind: str) -> None:
    """An async save that fails is reported by its own future; those before and after it are whole."""
    first, last = place(), place()
    missing = first.replace(StoreURI.parse(first).bucket, "no-such-bucket-anywhere")
    outcomes = run_ranks(2, rank_jobs.async_saves, [first, missing, last], kind, timeout_s=120)
    assert outcomes[0] == outcomes[1] == ["ok", "BucketNotFoundError", "ok"]
    assert run_ranks(1, rank_jobs.load_tensors, first, 1, 0) == [[]]
    assert run_ranks(1, rank_jobs.load_tensors, last, 1, 2) == [[]]


def test_every_rank_hears_that_there_is_no_checkpoint(place: Place) -> None:
    """A missing checkpoint is a typed error on all ranks, not torch's AssertionError."""
    assert set(run_ranks(2, rank_jobs.load_outcome, place())) == {CheckpointNotFoundError.__name__}
