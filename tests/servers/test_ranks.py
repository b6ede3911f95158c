from __future__ import annotations

import os
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import RankError, run_ranks


def sum_of_ranks(offset: int) -> tuple[int, int]:
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return dist.get_rank(), int(total.item())


def fail_on_one_rank() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank one is out of order")
    dist.barrier()


def hang_on_one_rank() -> None:
    while dist.get_rank() == 0:
        time.sleep(0.1)


def die_on_one_rank() -> None:
    if dist.get_rank() == 1:
        os._exit(7)


def test_ranks_return_their_results_in_order():
    """Every rank runs the function in one process group; results come back by rank."""
    assert run_ranks(2, sum_of_ranks, 10) == [(0, 21), (1, 21)]


def test_a_rank_that_raises_is_reported_with_its_traceback():
    """A failure on one rank fails the call, and says where."""
    with pytest.raises(RankError, match="rank one is out of order") as caught:
        run_ranks(2, fail_on_one_rank)
    assert "in fail_on_one_rank" in str(caught.value)


def test_a_rank_that_hangs_is_ended_with_its_stack():
    """A rank that does not end is killed at the deadline, after it has said where it was."""
    before = {process.pid for process in psutil.Process().children()}
    with pytest.raises(RankError, match="rank 0: did not end within") as caught:
        run_ranks(2, hang_on_one_rank, timeout_s=6.0)
    assert "in hang_on_one_rank" in str(caught.value)
    assert {process.pid for process in psutil.Process().children()} - before == set()


def test_a_rank_that_dies_is_reported():
    """A rank that ends without a result fails the call."""
    with pytest.raises(RankError, match=r"rank 1: failed\nended without a result"):
        run_ranks(2, die_on_one_rank)
