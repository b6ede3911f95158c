"""What faults brought to light, or what thinking about them did; each was mended and stays so."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.errors import CheckpointError, CommitConflictError
from dcp_cloud.testing.wrappers import Fault, FaultyStore
from tests.campaign import find_jobs
from tests.checkpoint.rank_jobs import HAS_RANK_LOCAL_SAVES
from tests.support.ranks import run_ranks

TRANSFER = TransferConfig(retry=RetryConfig(max_attempts=4, base_delay_s=0))


def keys(uri: str) -> set[str]:
    return {meta.key for meta in open_store(uri).list()}


@pytest.mark.parametrize(("flips", "is_told_of_success"), [(1, True), (None, False)])
def test_a_refused_save_looks_before_it_deletes(flips: int | None, is_told_of_success: bool) -> None:
    """The answer to the commit is lost and the look back is damaged: a committed save's data is not deleted."""
    uri = f"memory://{uuid.uuid4().hex}/run"
    dcp.save({"w": torch.zeros(1000)}, storage_writer=CloudStorageWriter(uri))
    store = FaultyStore(
        open_store(uri),
        [
            Fault("fail", verb="put", key=".metadata", when="after"),
            # The first two look at what is to be replaced, the third one is the look back.
            Fault("flip_bit", verb="get", key=".metadata", nth=3, times=flips),
        ],
    )
    raised: list[BaseException] = []
    try:
        dcp.save(
            {"w": torch.arange(1000.0)},
            storage_writer=CloudStorageWriter(uri, store=store, transfer=TRANSFER),
        )
    except CheckpointException as error:
        raised = [cause for cause, _ in error.failures.values()]
    assert [strike.fault.kind for strike in store.strikes][:2] == ["fail", "flip_bit"]
    assert not any(isinstance(error, CommitConflictError) for error in raised)
    assert is_told_of_success == (not raised)
    loaded = {"w": torch.zeros(1000)}
    dcp.load(loaded, storage_reader=CloudStorageReader(uri))
    assert torch.equal(loaded["w"], torch.arange(1000.0))


def test_ranks_never_load_different_saves(tmp_path) -> None:
    """The checkpoint is replaced between two ranks' reading of .metadata: a clear error on both, no mixture."""
    uri = f"file://{tmp_path}/run"
    outcomes = run_ranks(2, find_jobs.load_while_it_is_replaced, uri)
    assert outcomes == [CommitConflictError.__name__] * 2


@pytest.mark.skipif(not HAS_RANK_LOCAL_SAVES, reason="dcp.save has no use_collectives before torch 2.9")
def test_a_rank_local_save_of_fewer_ranks_leaves_no_commit_of_the_others(tmp_path) -> None:
    """After three ranks saved without collectives and then two, nothing is left of the third one's checkpoint."""
    uri = f"file://{tmp_path}/run"
    run_ranks(3, find_jobs.save_rank_local, uri, 1)
    before = keys(uri)
    run_ranks(2, find_jobs.save_rank_local, uri, 2)
    after = keys(uri)
    assert "__2.metadata" in before
    assert {key for key in after if key.endswith(".metadata")} == {"__0.metadata", "__1.metadata"}
    assert len(after) == 4


@pytest.mark.parametrize("damage", ["rot", "cut"])
@pytest.mark.parametrize("key", ["*.distcp", ".metadata"])
def test_damage_at_rest_is_never_loaded(damage: str, key: str) -> None:
    """A wrong bit or a missing end, in the data or in the commit: the load gives the right numbers or an error."""
    state = {f"w{n}": torch.arange(50.0) + n for n in range(8)}
    for seed in range(25):
        uri = f"memory://{uuid.uuid4().hex}/run"
        store = FaultyStore(open_store(uri), [Fault(damage, key=key)], seed=seed)  # type: ignore[arg-type]
        dcp.save(state, storage_writer=CloudStorageWriter(uri, store=store))
        assert [strike.fault.kind for strike in store.strikes] == [damage]
        loaded = {name: torch.zeros(50) for name in state}
        _load_or_hear(uri, loaded, lambda loaded=loaded: all(torch.equal(loaded[name], state[name]) for name in state))


def _load_or_hear(uri: str, loaded: dict[str, torch.Tensor], is_right: Callable[[], bool]) -> None:
    raised: list[BaseException] = []
    try:
        dcp.load(loaded, storage_reader=CloudStorageReader(uri))
    except CheckpointException as error:
        raised = [cause for cause, _ in error.failures.values()]
    assert all(isinstance(error, CheckpointError) for error in raised)
    assert raised or is_right()


@pytest.mark.timeout(60)
def test_a_value_longer_than_the_budget_after_a_short_tensor_does_not_wait_for_itself() -> None:
    """Short tensors are gathered before they are sent; a long value behind them must not wait for its own memory."""
    uri = f"memory://{uuid.uuid4().hex}/run"
    state = {"a": torch.arange(10.0), "b": "x" * 100_000, "c": torch.arange(5.0), "d": "y" * 70_000}
    transfer = TransferConfig(part_size_bytes=64, max_inflight_bytes=5000)
    dcp.save(state, storage_writer=CloudStorageWriter(uri, transfer=transfer))
    loaded = {"a": torch.zeros(10), "b": "", "c": torch.zeros(5), "d": ""}
    dcp.load(loaded, storage_reader=CloudStorageReader(uri))
    assert (loaded["b"], loaded["d"]) == (state["b"], state["d"])
