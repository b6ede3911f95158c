"""What ranks do in the tests of several processes; module-level functions, since ranks are spawned."""

from __future__ import annotations

import inspect
import os
import signal
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from dcp_cloud import (
    CheckpointManager,
    CloudHuggingFaceStorageWriter,
    CloudStorageReader,
    CloudStorageWriter,
    TransferConfig,
)
from dcp_cloud.errors import DcpCloudError
from tests.checkpoint.states import equal

SIZES = {"rows": (13, 6), "columns": (6, 14), "replicated": (5, 5), "large": (1031, 1027), "tiny": (3,)}
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate(), "large": Shard(0), "tiny": Shard(0)}


HAS_RANK_LOCAL_SAVES = "use_collectives" in inspect.signature(dcp.save).parameters
HAS_PROCESS_SAVES = "async_checkpointer_type" in inspect.signature(dcp.async_save).parameters


def full_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def distributed(tensors: dict[str, torch.Tensor]) -> dict[str, DTensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: distribute_tensor(tensor, mesh, [PLACEMENTS[name]]) for name, tensor in tensors.items()}


def save_tensors(uri: str, seed: int, options: dict[str, Any]) -> None:
    """Save DTensors of all placements and one value per rank."""
    state = {**distributed(full_tensors(seed)), f"rank{dist.get_rank()}": dist.get_rank(), "common": "text"}
    dcp.save(state, storage_writer=CloudStorageWriter(uri), **options)


def save_elsewhere(uri: str, how: str) -> str:
    """Save to a place of each rank's own; return what this rank hears."""
    place = uri.format(rank=dist.get_rank())
    state = distributed(full_tensors(1))
    try:
        if how == "manager":
            CheckpointManager(place).save(1, state)
        elif how == "safetensors":
            dcp.save(state, storage_writer=CloudHuggingFaceStorageWriter(place, save_distributed=True))
        else:
            dcp.save(state, storage_writer=CloudStorageWriter(place))
    except CheckpointException as error:
        return "; ".join(str(failure) for failure, _ in error.failures.values())
    except DcpCloudError as error:
        return str(error)
    return "ok"


def load_tensors(uri: str, seed: int, plus: int = 0) -> list[str]:
    """Load into DTensors of this world; return the names that differ from what was saved."""
    state = distributed({name: torch.zeros(size) for name, size in SIZES.items()})
    dcp.load(state, storage_reader=CloudStorageReader(uri))
    expected = full_tensors(seed)
    return [name for name in SIZES if not equal(state[name].full_tensor(), expected[name] + plus)]


def _model_and_optimizer(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 65), nn.GELU(), nn.Linear(65, 32), nn.LayerNorm(32))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    if hasattr(torch.cpu.Stream, "record_event"):
        model(torch.randn(4, 32, generator=generator)).square().mean().backward()
    else:  # torch 2.6 cannot run a sharded model on CPUs; what is saved and loaded has the same form
        for parameter in model.parameters():
            parameter.grad = (parameter.detach() + seed).sin()
    optimizer.step()


def _full(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    model_state, optim_state = get_state_dict(model, optimizer)
    flat = {f"model.{name}": value for name, value in model_state.items()}
    for name, entry in optim_state["state"].items():
        flat |= {f"optim.{name}.{key}": value for key, value in entry.items()}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in flat.items()}


def train_and_save(uri: str) -> dict[str, torch.Tensor]:
    """Train an FSDP2 model for three steps and save it with its optimizer."""
    model, optimizer = _model_and_optimizer(1)
    for step in range(3):
        _step(model, optimizer, step)
    model_state, optim_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optim": optim_state}, storage_writer=CloudStorageWriter(uri))
    return _full(model, optimizer)


def load_trained(uri: str) -> dict[str, torch.Tensor]:
    """Load the FSDP2 model into this world and return it whole."""
    model, optimizer = _model_and_optimizer(2)
    model_state, optim_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optim": optim_state}
    dcp.load(state, storage_reader=CloudStorageReader(uri))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return _full(model, optimizer)


def outcome(error: BaseException | None) -> str:
    """Describe how a save or load ended: the types of the errors of all ranks, as this rank sees them."""
    if error is None:
        return "ok"
    if isinstance(error, CheckpointException):
        return ",".join(sorted({type(cause).__name__ for cause, _ in error.failures.values()}))
    return f"bare {type(error).__name__}"


def save_with_fault(uri: str, failing_rank: int, fault: dict[str, Any]) -> str:
    """Save while the store of one rank fails; every rank reports what it was told."""
    from dcp_cloud import open_store
    from dcp_cloud.testing import Fault, FaultyStore

    store = open_store(uri)
    if dist.get_rank() == failing_rank:
        store = FaultyStore(store, faults=[Fault(**fault)])
    writer = CloudStorageWriter(uri, store=store, transfer=TransferConfig(part_size_bytes=5 * 2**20))
    try:
        dcp.save(distributed(full_tensors(5) | {"large": torch.randn(4000, 1500)}), storage_writer=writer)
    except BaseException as error:
        return outcome(error)
    return "ok"


def load_outcome(uri: str) -> str:
    """Load and report what this rank was told."""
    try:
        load_tensors(uri, 1)
    except BaseException as error:
        return outcome(error)
    return "ok"


def save_and_die(uri: str, dying_rank: int) -> None:
    """Kill one rank with SIGKILL after its data is stored and before the commit."""

    class Dying(CloudStorageWriter):
        def write_data(self, plan: Any, planner: Any) -> Any:
            future = super().write_data(plan, planner)
            if dist.get_rank() == dying_rank:
                os.kill(os.getpid(), signal.SIGKILL)
            return future

    dcp.save(distributed(full_tensors(9)), storage_writer=Dying(uri))


def async_saves(uris: list[str], kind: str) -> list[str]:
    """Save to one place after the other in the background; report each outcome."""
    options = {}
    if kind == "process":  # a thread is the default, and all that torch 2.6 has
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        options = {"async_checkpointer_type": AsyncCheckpointerType.PROCESS}
    outcomes = []
    writer = CloudStorageWriter(uris[0])
    for step, uri in enumerate(uris):
        state = distributed({name: tensor + step for name, tensor in full_tensors(1).items()})
        future = dcp.async_save(state, storage_writer=writer, checkpoint_id=uri, **options)
        try:
            future.result()
            outcomes.append("ok")
        except BaseException as error:
            outcomes.append(outcome(error))
    return outcomes
