"""Save sharded over 3 processes, load sharded over 2: python examples/reshard.py [URI]"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dcp_cloud import CloudStorageReader, CloudStorageWriter

WEIGHT = torch.arange(1000.0 * 64).view(1000, 64)


def save(rank: int, world_size: int, directory: str, uri: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/save", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    dcp.save({"weight": distribute_tensor(WEIGHT, mesh, [Shard(0)])}, storage_writer=CloudStorageWriter(uri))
    dist.destroy_process_group()


def load(rank: int, world_size: int, directory: str, uri: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/load", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    state = {"weight": distribute_tensor(torch.zeros_like(WEIGHT), mesh, [Shard(0)])}
    dcp.load(state, storage_reader=CloudStorageReader(uri))
    print(f"rank {rank} of {world_size}: equal: {torch.equal(state['weight'].full_tensor(), WEIGHT)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        place = sys.argv[1] if len(sys.argv) > 1 else f"file://{scratch}/checkpoint"
        mp.spawn(save, (3, scratch, place), nprocs=3)
        mp.spawn(load, (2, scratch, place), nprocs=2)
