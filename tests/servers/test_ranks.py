from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import RankError, run_ranks, start_fork_server


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


def say_and_hang(directory: str) -> None:
    Path(directory, f"rank-{dist.get_rank()}").touch()
    time.sleep(99)


def show_surroundings() -> tuple[str | None, str, int, int]:
    return os.environ.get("ONLY_HERE"), os.getcwd(), torch.get_num_threads(), threading.active_count()


def test_ranks_return_their_results_in_order():
    """Every rank runs the function in one process group; results come back by rank."""
    assert run_ranks(2, sum_of_ranks, 10) == [(0, 21), (1, 21)]


def test_ranks_see_the_environment_of_the_call(monkeypatch: pytest.MonkeyPatch):
    """Whatever ran before, a rank has the environment that its caller has now, the project's directory, one thread."""
    for value in ("first", "second"):
        monkeypatch.setenv("ONLY_HERE", value)
        assert run_ranks(1, show_surroundings) == [(value, str(Path(__file__).parents[2]), 1, 1)]


def test_a_rank_that_raises_is_reported_with_its_traceback():
    """A failure on one rank fails the call, and says where."""
    with pytest.raises(RankError, match="rank one is out of order") as caught:
        run_ranks(2, fail_on_one_rank)
    assert "in fail_on_one_rank" in str(caught.value)


def test_a_rank_that_hangs_is_ended_with_its_stack():
    """A rank that does not end is killed at the deadline, after it has said where it was."""
    start_fork_server()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.raises(RankError, match="rank 0: did not end within") as caught:
        run_ranks(2, hang_on_one_rank, timeout_s=2.0)
    assert "in hang_on_one_rank" in str(caught.value)
    assert {process.pid for process in psutil.Process().children(recursive=True)} - before == set()


def test_ranks_end_when_their_starter_is_killed(tmp_path: Path):
    """Neither the ranks nor the process that they are forked from outlive whoever started them."""
    script = f"from tests.servers.test_ranks import *; run_ranks(2, say_and_hang, {str(tmp_path)!r})"
    starter = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("rank-*"))) < 2:
            assert starter.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes = psutil.Process(starter.pid).children(recursive=True)
        assert len(processes) >= 3
    finally:
        starter.kill()
        starter.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_a_rank_that_dies_is_reported():
    """A rank that ends without a result fails the call."""
    with pytest.raises(RankError, match=r"rank 1: failed\nended without a result"):
        run_ranks(2, die_on_one_rank)
