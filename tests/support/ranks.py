"""Run a function on several ranks of a gloo process group, each in a process of its own.

The ranks are forked from one process that has imported torch, which takes longer than what most ranks do.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.rank_child import run_rank

_ROOT = Path(__file__).resolve().parents[2]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Starts coverage with the interpreter. Processes of multiprocessing start it themselves, and only after they have
# imported torch, which it makes slow.
_COVERAGE = "COVERAGE_PROCESS_CONFIG"
_PEERS_S = 10.0  # what the other ranks get to notice that one has failed
_PEERS_OF_KILLED_S = 2.0  # the same, when it was killed: gloo waits for a lost rank as long as it may
_DUMP_S = 5.0  # what a rank gets to write down its stacks
_LOG_TAIL_BYTES = 8000


class RankError(AssertionError):
    """At least one rank raised, died or did not end in time; the message holds every rank's story."""


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 90.0) -> list[Any]:
    """Call ``function(*args)`` on every rank, inside an initialised gloo process group.

    Args:
        world_size: Number of ranks.
        function: A function of a module below ``tests``, not nested; it asks torch for its rank.
        args: Its arguments; they and what it returns are pickled.
        timeout_s: After so many seconds the ranks write down their stacks and are killed.

    Returns:
        What each rank returned, by rank.

    Raises:
        RankError: A rank raised, died or did not end in time.
    """
    context = start_fork_server()
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        directory = Path(name)
        (directory / "task").write_bytes(pickle.dumps((function, args, timeout_s)))
        ranks = [
            context.Process(target=run_rank, args=(directory, rank, world_size, _environment()))
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            verdicts = _wait(ranks, timeout_s)
        finally:
            for process in ranks:
                _end(process)
        outcomes = [_outcome(directory, rank) for rank in range(world_size)]
        if all(returned for returned, _ in outcomes) and not any(verdicts):
            return [value for _, value in outcomes]
        raise RankError("\n".join(_stories(directory, outcomes, verdicts)))


def start_fork_server() -> ForkServerContext:
    """Start the process that ranks are forked from, unless it runs; it ends with this process, however that ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.rank_server"])
    with mock.patch.dict(os.environ, _ONE_THREAD | {"PYTHONPATH": str(_ROOT)}):
        os.environ.pop(_COVERAGE, None)
        ensure_running()
    return context


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread of arithmetic each: the ranks share the machine. The fault handler is for what a rank starts itself.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # gloo would otherwise look up this machine's name
    environment.pop(_COVERAGE, None)
    return environment


def _wait(ranks: list[ForkServerProcess], timeout_s: float) -> list[str]:
    """Wait for the end of all ranks; return for each why it had to be ended, or nothing."""
    deadline = time.monotonic() + timeout_s
    reason = f"did not end within {timeout_s:.0f} s"
    while (alive := _alive(ranks)) and time.monotonic() < deadline:
        wait([process.sentinel for process in alive], max(0.0, deadline - time.monotonic()))
        failed = [process.exitcode for process in ranks if process.exitcode]
        peers_s = _PEERS_OF_KILLED_S if any(code < 0 for code in failed) else _PEERS_S
        if failed and deadline > time.monotonic() + peers_s:
            deadline, reason = time.monotonic() + peers_s, "was still waiting for another rank, which had failed"
    late = [process.exitcode is None for process in ranks]
    for process in _alive(ranks):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGABRT)  # faulthandler writes the stacks of all threads
    dumped_by = time.monotonic() + _DUMP_S
    for process in _alive(ranks):
        process.join(max(0.0, dumped_by - time.monotonic()))
    return [reason if is_late else "" for is_late in late]


def _alive(ranks: Iterable[ForkServerProcess]) -> list[ForkServerProcess]:
    return [process for process in ranks if process.exitcode is None]


def _end(process: ForkServerProcess) -> None:
    if process.pid is not None:
        process.kill()
        process.join()
    process.close()


def _outcome(directory: Path, rank: int) -> tuple[bool, Any]:
    path = directory / f"outcome-{rank}"
    if not path.exists():
        return False, "ended without a result"
    returned, value = pickle.loads(path.read_bytes())
    return bool(returned), value


def _stories(directory: Path, outcomes: list[tuple[bool, Any]], verdicts: list[str]) -> Iterable[str]:
    for rank, ((returned, value), verdict) in enumerate(zip(outcomes, verdicts, strict=True)):
        log = (directory / f"log-{rank}").read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        yield f"--- rank {rank}: {verdict or ('returned' if returned else 'failed')}"
        if not returned:
            yield str(value)
        if log:
            yield f"--- rank {rank}, its output:\n{log}"
