"""Saves that the tests of the command line look at; run on two ranks."""

from __future__ import annotations

import os

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from dcp_cloud import CloudStorageWriter


def save_three_ways(directory: str) -> None:
    """Save one state by this package, by torch's own writer, and by each rank for itself."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    state = {
        "model": {
            f"layers.{layer}.{name}": distribute_tensor(tensor, mesh, [placement])
            for layer in (0, 1, 10)
            for name, tensor, placement in (
                ("weight", torch.randn(512, 768), Shard(0)),
                ("bias", torch.randn(512, dtype=torch.bfloat16), Replicate()),
            )
        },
        # Longer than one block of checksums.
        "embedding": distribute_tensor(torch.randn(3000, 1024), mesh, [Shard(0)]),
        "optim": {"step": torch.tensor(100.0), "betas": (0.9, 0.95)},
        "epoch": 3,
    }
    dcp.save(state, storage_writer=CloudStorageWriter(f"file://{directory}/step-100"))
    # torch records the path, part by part: how deep it is decides on the length of .metadata, which the tools show.
    os.chdir(directory)
    dcp.save(state, storage_writer=dcp.FileSystemWriter("step-200"))
    dcp.save(state, storage_writer=CloudStorageWriter(f"file://{directory}/local-50"), use_collectives=False)


def save_unevenly(uri: str) -> None:
    """Save one object that is longer than 5 MiB, the shortest part of all stores, and a short one."""
    mesh = init_device_mesh("cpu", (2,))
    rows = torch.arange(1400 * 1024, dtype=torch.float32).reshape(1400, 1024)
    state = {
        # 1400 rows of 4 KiB on the first rank; on the second, little but a shard of this.
        "long" if mesh.get_rank() == 0 else "short": rows if mesh.get_rank() == 0 else rows[:1].clone(),
        "both": distribute_tensor(torch.randn(6, 1024), mesh, [Shard(0)]),
        "epoch": 3,
    }
    dcp.save(state, storage_writer=CloudStorageWriter(uri))
