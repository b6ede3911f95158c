"""What ranks do in the regression tests; module-level, since ranks are processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from tests.checkpoint.rank_jobs import outcome


def load_while_it_is_replaced(uri: str) -> str:
    """Load on two ranks; the first reads .metadata, then the checkpoint is replaced, then the second reads it."""
    rank = dist.get_rank()
    if rank == 0:
        dcp.save({"w": torch.zeros(100)}, storage_writer=CloudStorageWriter(uri), no_dist=True)

    class InTurn(CloudStorageReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            if rank == 1:
                dist.barrier()
            found = super().read_metadata(*args, **kwargs)
            if rank == 0:
                dcp.save({"w": torch.ones(100)}, storage_writer=CloudStorageWriter(uri), no_dist=True)
                dist.barrier()
            return found

    dist.barrier()
    try:
        dcp.load({"w": torch.full((100,), -1.0)}, storage_reader=InTurn(uri))
    except BaseException as error:
        return outcome(error)
    return "ok"


def save_rank_local(uri: str, value: int) -> None:
    """Save without collectives: each rank a tensor of its own."""
    state = {f"w{dist.get_rank()}": torch.full((10,), float(value))}
    dcp.save(state, storage_writer=CloudStorageWriter(uri), use_collectives=False)
