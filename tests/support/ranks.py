"""Run a function on several ranks of a gloo process group, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_PEERS_S = 10.0  # what the other ranks get to notice that one has failed
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
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        directory = Path(name)
        (directory / "task").write_bytes(pickle.dumps((function, args, timeout_s)))
        ranks = [_start(directory, rank, world_size) for rank in range(world_size)]
        try:
            verdicts = _wait(ranks, timeout_s)
        finally:
            for popen in ranks:
                popen.kill()
                popen.wait()
        outcomes = [_outcome(directory, rank) for rank in range(world_size)]
        if all(returned for returned, _ in outcomes) and not any(verdicts):
            return [value for _, value in outcomes]
        raise RankError("\n".join(_stories(directory, outcomes, verdicts)))


def _start(directory: Path, rank: int, world_size: int) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread of arithmetic each: the ranks share the machine. gloo would otherwise look up this machine's name.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with (directory / f"log-{rank}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.rank_child", str(directory), str(rank), str(world_size)],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(ranks: list[subprocess.Popen[bytes]], timeout_s: float) -> list[str]:
    """Wait for the end of all ranks; return for each why it had to be ended, or nothing."""
    deadline = time.monotonic() + timeout_s
    reason = f"did not end within {timeout_s:.0f} s"
    while any(popen.poll() is None for popen in ranks) and time.monotonic() < deadline:
        if any(popen.poll() for popen in ranks) and deadline > time.monotonic() + _PEERS_S:
            deadline, reason = time.monotonic() + _PEERS_S, "was still waiting for another rank, which had failed"
        time.sleep(0.01)
    late = [popen.poll() is None for popen in ranks]
    for popen, is_late in zip(ranks, late, strict=True):
        if is_late:
            popen.send_signal(signal.SIGABRT)  # faulthandler writes the stacks of all threads
    _wait_briefly(popen for popen, is_late in zip(ranks, late, strict=True) if is_late)
    return [reason if is_late else "" for is_late in late]


def _wait_briefly(ranks: Iterable[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _DUMP_S
    for popen in ranks:
        try:
            popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue  # the caller kills it


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
