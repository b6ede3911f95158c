"""What ranks do in the tests of models in safetensors files."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from dcp_cloud import (
    CloudHuggingFaceStorageReader,
    CloudHuggingFaceStorageWriter,
    CloudQuantizedHuggingFaceStorageReader,
    StoreURI,
    TransferConfig,
    consolidate_safetensors,
)
from tests.checkpoint.states import equal, random_bytes
from tests.support.resources import watched_memory

HAS_TORCHS_OWN = hasattr(dcp, "HuggingFaceStorageWriter")
HAS_TORCHS_QUANTISED = hasattr(dcp, "QuantizedHuggingFaceStorageReader")

PLACEMENTS = {
    "rows": (Shard(0), (13, 6), torch.float32),
    "columns": (Shard(1), (6, 14), torch.bfloat16),
    "middle": (Shard(1), (3, 10, 4), torch.int32),
    "replicated": (Replicate(), (5, 5), torch.float64),
    "large": (Shard(0), (1031, 1027), torch.float32),
    "wide": (Shard(1), (1025, 1030), torch.float32),
    "tiny": (Shard(0), (3,), torch.int64),
    "flags": (Shard(0), (9,), torch.bool),
    "eight": (Shard(1), (4, 8), torch.float8_e4m3fn),
    "step": (Replicate(), (), torch.float32),
}


def full_tensors(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: random_bytes(shape, dtype) for name, (_, shape, dtype) in PLACEMENTS.items()}


def distributed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        placement = PLACEMENTS[name][0]
        # Without communication: gloo does not know all of these dtypes.
        chunks = (
            list(tensor.view(torch.uint8).view(*tensor.shape, -1).chunk(mesh.size(), placement.dim))
            if (isinstance(placement, Shard))
            else [tensor] * mesh.size()
        )
        if isinstance(placement, Shard):
            chunks = [chunk.contiguous().view(tensor.dtype).view(chunk.shape[:-1]) for chunk in chunks]
            empty = tensor.narrow(placement.dim, 0, 0)
            chunks += [empty] * (mesh.size() - len(chunks))
        local = chunks[mesh.get_rank()].clone()
        state[name] = DTensor.from_local(
            local, mesh, [placement], run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
    return state


def differences(state: dict[str, Any], expected: dict[str, torch.Tensor]) -> list[str]:
    """Name the tensors of which this rank's part is not that of the expected ones."""
    wanted = distributed(expected)
    return [name for name in expected if not equal(state[name].to_local(), wanted[name].to_local())]


def save(uri: str, seed: int, options: dict[str, Any]) -> None:
    dcp.save(distributed(full_tensors(seed)), storage_writer=CloudHuggingFaceStorageWriter(uri, **options))


def load_both(uri: str, seed: int) -> list[str]:
    """Load the shards of a consolidating save, and what was made of them."""
    return [*load(str(StoreURI.parse(uri).child("sharded")), seed), *load(uri, seed)]


def load(uri: str, seed: int) -> list[str]:
    state = distributed({name: torch.zeros_like(tensor) for name, tensor in full_tensors(seed).items()})
    dcp.load(state, storage_reader=CloudHuggingFaceStorageReader(uri))
    return differences(state, full_tensors(seed))


def save_with_torch(directory: str, seed: int, names: list[str]) -> None:
    """Save shards with torch's own writer."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    whole = full_tensors(seed)
    state = distributed({name: whole[name] for name in names})
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(directory, save_distributed=True))


def load_names(uri: str, seed: int, names: list[str]) -> list[str]:
    whole = {name: full_tensors(seed)[name] for name in names}
    state = distributed({name: torch.zeros_like(tensor) for name, tensor in whole.items()})
    dcp.load(state, storage_reader=CloudHuggingFaceStorageReader(uri))
    return differences(state, whole)


def save_whole_tensors_by_rank(uri: str) -> None:
    """Every rank saves tensors that the others do not have."""
    rank = dist.get_rank()
    state = {f"rank{rank}": torch.full((4,), float(rank)), "same": torch.ones(3)}
    dcp.save(state, storage_writer=CloudHuggingFaceStorageWriter(uri))


def save_two_shards_of_one_name(uri: str) -> None:
    """Save a tensor of which this rank holds two separate shards."""
    from torch.distributed._shard.sharded_tensor import Shard as LocalShard
    from torch.distributed._shard.sharded_tensor import init_from_local_shards

    rank, world = dist.get_rank(), dist.get_world_size()
    whole = torch.arange(8 * 3, dtype=torch.float32).reshape(8, 3)
    rows = [index * world + rank for index in range(8 // 2 // world)]
    shards = [
        LocalShard.from_tensor_and_offsets(whole[2 * row : 2 * row + 2].clone(), [2 * row, 0], rank) for row in rows
    ]
    state = {"weight": init_from_local_shards(shards, 8, 3)}
    dcp.save(state, storage_writer=CloudHuggingFaceStorageWriter(uri, save_distributed=True))


def tiny_llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def sharded_llama(seed: int) -> Any:
    from torch.distributed.fsdp import fully_shard

    model = tiny_llama(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def save_llama(uri: str, seed: int) -> None:
    writer = CloudHuggingFaceStorageWriter(uri, save_distributed=True, enable_consolidation=True)
    dcp.save(sharded_llama(seed).state_dict(), storage_writer=writer)


def load_llama(uris: list[str], seed: int) -> list[str]:
    """Load published weights into a sharded model; return what differs from the model of that seed."""
    expected = tiny_llama(seed).state_dict()
    differing: list[str] = []
    for uri in uris:
        state = sharded_llama(seed + 1).state_dict()
        dcp.load(state, storage_reader=CloudHuggingFaceStorageReader(uri))
        differing += [name for name in expected if not equal(state[name].full_tensor(), expected[name])]
    return differing


def load_quantised(uri: str, name: str, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Load a quantised tensor once for each dimension that it can be sharded along."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = []
    for dim in range(len(shape)):
        state = {name: distribute_tensor(torch.zeros(shape), mesh, [Shard(dim)])}
        dcp.load(state, storage_reader=CloudQuantizedHuggingFaceStorageReader(uri))
        found.append(state[name].full_tensor())
    return found


def save_columns(uri: str, rows: int, columns: int) -> None:
    """Save a tensor of ones, each rank its columns."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = torch.ones(rows, columns // mesh.size())
    whole = DTensor.from_local(
        local, mesh, [Shard(1)], run_check=False, shape=torch.Size((rows, columns)), stride=(columns, 1)
    )
    dcp.save({"w": whole}, storage_writer=CloudHuggingFaceStorageWriter(uri, save_distributed=True))


def consolidation_memory(source: str, target: str, inflight_bytes: int) -> int:
    """Merge shards; return by how many bytes this process grew meanwhile."""
    transfer = TransferConfig(max_inflight_bytes=inflight_bytes)
    consolidate_safetensors(source, target + "-warm", transfer=transfer)
    with watched_memory() as peak:
        consolidate_safetensors(source, target, transfer=transfer)
    return peak.growth_bytes


def floats() -> dict[str, torch.Tensor]:
    names = ("rows", "columns", "large", "wide", "replicated")
    return {name: tensor for name, tensor in full_tensors(4).items() if name in names}


def save_floats(uri: str) -> None:
    state = distributed(floats())
    dcp.save(state, storage_writer=CloudHuggingFaceStorageWriter(uri, save_distributed=True))
