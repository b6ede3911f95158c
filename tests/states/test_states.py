"""torch's helpers for optimizer and model states with our writer and reader: saved by two ranks, loaded by 1, 2, 4."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.checkpoint.conftest import every_cloud
from tests.checkpoint.states import equal
from tests.states import jobs
from tests.support.ranks import run_ranks

Place = Callable[..., str]


@every_cloud
def test_flattened_optimizer_state_reshards(place: Place) -> None:
    """get_optimizer_state_dict with flattened names, two parameter groups, FSDP2: the same bits on any ranks."""
    uri = place()
    saved = run_ranks(2, jobs.save_flattened, uri)[0]
    assert any(name.startswith("state.") for name in saved["optim"])
    for world_size in (1, 2, 4):
        for loaded in run_ranks(world_size, jobs.load_flattened, uri):
            assert equal(loaded["model"], saved["model"])
            assert equal(loaded["optim"], saved["optim"])


# torch says that ShardedTensor will go one day.
@pytest.mark.filterwarnings("ignore")
@every_cloud
def test_sharded_tensors_and_their_optimizer_state_reshard(place: Place) -> None:
    """ShardedTensor on CPUs, and load_sharded_optimizer_state_dict, which reads the metadata twice with one reader."""
    uri = place()
    run_ranks(2, jobs.save_sharded_tensor, uri)
    for world_size in (1, 2, 4):
        assert run_ranks(world_size, jobs.load_sharded_tensor, uri) == [[]] * world_size


@every_cloud
def test_stateful_objects_are_told(place: Place) -> None:
    """state_dict and load_state_dict of Stateful objects are called, with sharded tensors and values in them."""
    uri = place()
    saved = run_ranks(2, jobs.save_stateful, uri)[0]
    for world_size in (1, 2, 4):
        for state, counter in run_ranks(world_size, jobs.load_stateful, uri):
            assert equal(state, saved)
            assert equal(counter, [5, torch.arange(5.0), ["a", (5, "b")], 1])
