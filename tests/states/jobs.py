"""What ranks do in the tests of torch's state-dict helpers; module-level functions, since ranks are spawned."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, init_from_local_shards
from torch.distributed.checkpoint.optimizer import load_sharded_optimizer_state_dict
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from tests.checkpoint.states import equal

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
ROWS, COLUMNS = 22, 5


def _trained(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make an FSDP2 model and take steps with gradients that every number of ranks agrees on."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 13), nn.GELU(), nn.Linear(13, 8))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = (parameter.detach() + step).sin()
        optimizer.step()
    return model, optimizer


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: _whole(entry) for key, entry in value.items()}
    return [_whole(entry) for entry in value] if isinstance(value, list) else value


def save_flattened(uri: str) -> dict[str, Any]:
    """Save model and flattened optimizer state; return them whole."""
    model, optimizer = _trained(1, 3)
    state = {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer, options=FLAT)}
    dcp.save(state, storage_writer=CloudStorageWriter(uri))
    return _whole(state)


def load_flattened(uri: str) -> dict[str, Any]:
    """Load both into another model of this world; return what its optimizer then says, whole."""
    model, optimizer = _trained(2, 0)
    state = {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer, options=FLAT)}
    dcp.load(state, storage_reader=CloudStorageReader(uri))
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"], options=FLAT)
    return _whole(
        {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer, options=FLAT)}
    )


def _values(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def _sharded(whole: torch.Tensor) -> ShardedTensor:
    """Cut a tensor into rows, as ``ChunkShardingSpec`` would: equal pieces, the last one shorter."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    step = -(-whole.shape[0] // world_size)
    start = rank * step
    local = whole[start : start + step].clone()
    shard = Shard.from_tensor_and_offsets(local, [start, *[0] * (whole.dim() - 1)], rank)
    return init_from_local_shards([shard], *whole.shape)


def save_sharded_tensor(uri: str) -> None:
    """Save a ShardedTensor, and optimizer state in the form that FSDP1's users keep."""
    state = {
        "weight": _sharded(_values(1)),
        "optim": {
            "state": {"weight": {"exp_avg": _sharded(_values(2)), "exp_avg_sq": _sharded(_values(3)), "step": 7}},
            "param_groups": [{"lr": 0.25, "params": ["weight"]}],
        },
    }
    dcp.save(state, storage_writer=CloudStorageWriter(uri))


def load_sharded_tensor(uri: str) -> list[str]:
    """Load the ShardedTensor in this world's pieces, and the optimizer state by torch's helper; return what differs."""
    state = {"weight": _sharded(torch.zeros(ROWS, COLUMNS))}
    dcp.load(state, storage_reader=CloudStorageReader(uri))
    # The helper makes its targets by the sharding of the model's own parameters.
    optim = load_sharded_optimizer_state_dict(
        model_state_dict={"weight": state["weight"]}, optimizer_key="optim", storage_reader=CloudStorageReader(uri)
    )["optim"]
    entry = optim["state"]["weight"]
    found = {"weight": (state["weight"], 1), "exp_avg": (entry["exp_avg"], 2), "exp_avg_sq": (entry["exp_avg_sq"], 3)}
    differing = [name for name, (tensor, seed) in found.items() if not _holds(tensor, _values(seed))]
    if entry["step"] != 7 or optim["param_groups"] != [{"lr": 0.25, "params": ["weight"]}]:
        differing.append("values")
    return differing


def _holds(tensor: Any, whole: torch.Tensor) -> bool:
    """Compare what this rank has of a tensor."""
    if isinstance(tensor, ShardedTensor):
        shards = tensor.local_shards()
        return bool(shards) and all(
            equal(
                shard.tensor,
                whole[shard.metadata.shard_offsets[0] :][: shard.metadata.shard_sizes[0]],
            )
            for shard in shards
        )
    return equal(_whole(tensor), whole)


class Counter:
    """A Stateful object with tensors and values in it.

    Args:
        start: Where it counts from.
    """

    def __init__(self, start: int) -> None:
        self.count = start
        self.history = torch.arange(float(start))
        self.loads = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "history": self.history, "notes": ["a", (self.count, "b")]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.history = state["history"]
        self.notes = state["notes"]
        self.loads += 1


class Trainer:
    """A Stateful object that saves a sharded model and its optimizer with torch's helpers.

    Args:
        seed: For the model.
        steps: Steps that it was trained for.
    """

    def __init__(self, seed: int, steps: int) -> None:
        self.model, self.optimizer = _trained(seed, steps)

    def state_dict(self) -> dict[str, Any]:
        model, optim = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optim}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])


def save_stateful(uri: str) -> dict[str, Any]:
    """Save Stateful objects as they are."""
    trainer = Trainer(1, 2)
    dcp.save({"trainer": trainer, "counter": Counter(5)}, storage_writer=CloudStorageWriter(uri))
    return _whole(trainer.state_dict())


def load_stateful(uri: str) -> tuple[dict[str, Any], list[Any]]:
    """Load into other objects; they are told by torch."""
    trainer, counter = Trainer(2, 0), Counter(5)
    counter.count, counter.history = 0, torch.zeros(5)
    dcp.load({"trainer": trainer, "counter": counter}, storage_reader=CloudStorageReader(uri))
    return _whole(trainer.state_dict()), [counter.count, counter.history, counter.notes, counter.loads]
