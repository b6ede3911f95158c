"""What ranks do in the tests of conversions."""

from __future__ import annotations

import threading

import psutil
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import DynamicMetaLoadPlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dcp_cloud import CloudStorageWriter, CloudTorchSaveReader, TransferConfig, convert_checkpoint
from tests.checkpoint.states import equal

SIZES = {"rows": (13, 6), "columns": (7, 30), "large": (1031, 1027)}
DIMS = {"rows": 0, "columns": 1, "large": 1}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def sharded(whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: distribute_tensor(tensor, mesh, [Shard(DIMS[name])]) for name, tensor in whole.items()}


def save(uri: str) -> None:
    dcp.save({"model": sharded(tensors()), "epoch": 3}, storage_writer=CloudStorageWriter(uri))


def load_torch_file(uri: str, dynamic: bool) -> list[str]:
    """Load a file of torch.save into this world's shards; return what differs."""
    state = sharded({name: torch.zeros(size) for name, size in SIZES.items()})
    planner = DynamicMetaLoadPlanner() if dynamic else None
    dcp.load(state, storage_reader=CloudTorchSaveReader(uri), planner=planner)
    return [name for name, tensor in tensors().items() if not equal(state[name].full_tensor(), tensor)]


def extra_memory(source: str, target: str, inflight_bytes: int) -> int:
    """Convert; return by how many bytes this process was larger than before while it did."""
    process, peak, done = psutil.Process(), 0, threading.Event()
    convert_checkpoint(source, target + ".warm.pt", transfer=TransferConfig(max_inflight_bytes=inflight_bytes))
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        convert_checkpoint(source, target, transfer=TransferConfig(max_inflight_bytes=inflight_bytes))
    finally:
        done.set()
        thread.join()
    return peak - before
