"""One rank of ``run_ranks``, in a process of its own that was forked for it."""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from dcp_cloud.testing.servers.guard import die_with_parent

_ROOT = Path(__file__).resolve().parents[2]


def run_rank(directory: Path, rank: int, world_size: int, environment: Mapping[str, str]) -> None:
    """Be one rank: take on the caller's surroundings, do the task, write down how it ended."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write_output_to(directory / f"log-{rank}")
    faulthandler.enable()
    os.chdir(_ROOT)
    os.environ.clear()
    os.environ.update(environment)
    try:
        outcome = pickle.dumps((True, _call(directory, rank, world_size)))
        code = 0
    except BaseException:  # torch reports failures of other ranks by a BaseException
        outcome = pickle.dumps((False, traceback.format_exc()))
        code = 1
    unfinished = directory / f"unfinished-{rank}"
    unfinished.write_bytes(outcome)
    unfinished.rename(directory / f"outcome-{rank}")
    sys.exit(code)


def _write_output_to(path: Path) -> None:
    with path.open("wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)


def _call(directory: Path, rank: int, world_size: int) -> object:
    function, args, timeout_s = pickle.loads((directory / "task").read_bytes())
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    # The group is not destroyed, the process ends with it: in torch 2.6 its destructor waits, with the GIL held, for a
    # thread that may want the GIL.
    return function(*args)
