"""One rank of ``run_ranks``: ``python -m tests.support.rank_child DIRECTORY RANK WORLD_SIZE``."""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import sys
import traceback
from datetime import timedelta
from pathlib import Path

from dcp_cloud.testing.servers.guard import die_with_parent


def main(directory: Path, rank: int, world_size: int) -> int:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    try:
        outcome = pickle.dumps((True, _call(directory, rank, world_size)))
        code = 0
    except BaseException:  # torch reports failures of other ranks by a BaseException
        outcome = pickle.dumps((False, traceback.format_exc()))
        code = 1
    unfinished = directory / f"unfinished-{rank}"
    unfinished.write_bytes(outcome)
    unfinished.rename(directory / f"outcome-{rank}")
    return code


def _call(directory: Path, rank: int, world_size: int) -> object:
    import torch.distributed as dist

    function, args, timeout_s = pickle.loads((directory / "task").read_bytes())
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        return function(*args)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")  # for what a rank starts itself
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
