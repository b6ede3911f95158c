"""Jobs in processes of their own, which can be killed; forked from one that has imported everything."""

from __future__ import annotations

import faulthandler
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dcp_cloud.testing.servers.guard import die_with_parent
from tests.support.ranks import start_fork_server

KILLED = "killed"
HUNG = "hung"


def run_children(
    tasks: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    environment: Mapping[str, str],
    *,
    timeout_s: float,
    is_group: bool = False,
) -> list[Any]:
    """Call a function in each of several processes, as ranks of one gloo group if wanted.

    Returns:
        What each returned; ``KILLED`` for one that ended without a word, ``HUNG`` for one that had to be ended.
    """
    context = start_fork_server()
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        directory = Path(name)
        size = len(tasks) if is_group else 0
        children = [
            context.Process(target=_child, args=(directory, number, size, timeout_s, task, dict(environment)))
            for number, task in enumerate(tasks)
        ]
        deadline_s = time.monotonic() + timeout_s
        try:
            for child in children:
                child.start()
            for child in children:
                wait([child.sentinel], max(0.0, deadline_s - time.monotonic()))
            hung = [child.exitcode is None for child in children]
        finally:
            for child in children:
                child.kill()
                child.join()
        found = []
        for number, is_hung in enumerate(hung):
            path = directory / f"outcome-{number}"
            if is_hung:
                log = directory / f"log-{number}"
                found.append((HUNG, log.read_text(errors="replace")[-6000:] if log.exists() else ""))
            elif path.exists():
                found.append(pickle.loads(path.read_bytes()))
            else:
                found.append((KILLED, str(children[number].exitcode)))
        return found


def _child(
    directory: Path,
    number: int,
    group_size: int,
    timeout_s: float,
    task: tuple[Callable[..., Any], tuple[Any, ...]],
    environment: dict[str, str],
) -> None:
    die_with_parent()
    log = (directory / f"log-{number}").open("wb")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.dump_traceback_later(timeout_s * 0.8)
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    try:
        if group_size:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{directory}/rendezvous",
                rank=number,
                world_size=group_size,
                timeout=timedelta(seconds=timeout_s * 0.6),
            )
        function, args = task
        outcome = function(*args)
        path = directory / f"unfinished-{number}"
        path.write_bytes(pickle.dumps(outcome))
        path.rename(directory / f"outcome-{number}")
        os._exit(0)
    except BaseException:
        import traceback

        (directory / f"outcome-{number}").write_bytes(pickle.dumps(("broken", traceback.format_exc())))
        os._exit(1)
