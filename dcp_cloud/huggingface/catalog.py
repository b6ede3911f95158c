"""From the headers of a model's files to torch's metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_cloud.checkpoint.tiling import Box, find_tiling_fault
from dcp_cloud.errors import CorruptCheckpointError, IncompleteCheckpointError
from dcp_cloud.format.layout import RawData, StoredItem, to_storage_info
from dcp_cloud.format.safetensors import FileTensor, load_json
from dcp_cloud.huggingface.files import ModelFiles, OpenFile
from dcp_cloud.huggingface.naming import GLOBAL_SHAPE, SAVED_OFFSETS, SHARDING_INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """A tensor of a file and its place in the whole one."""

    file: str
    tensor: FileTensor
    offsets: tuple[int, ...]
    whole: tuple[int, ...] | None
    is_placed: bool

    @property
    def box(self) -> Box:
        return Box(self.offsets, self.tensor.shape)

    @property
    def reach(self) -> tuple[int, ...]:
        return tuple(offset + size for offset, size in zip(self.offsets, self.tensor.shape, strict=True))


def build_metadata(files: ModelFiles, opened: Mapping[str, OpenFile], *, where: str) -> Metadata:
    """Describe a model as torch's planners want it.

    Args:
        files: Its files.
        opened: Their headers.
        where: URI of the model, for messages.

    Returns:
        Metadata with every tensor and where its shards are.

    Raises:
        CorruptCheckpointError: The files contradict each other or the index.
        IncompleteCheckpointError: Shards of a tensor are missing.
    """
    shards: dict[str, list[_Shard]] = {}
    for name, file in opened.items():
        info = _sharding_info(name, file)
        for fqn, tensor in file.header.tensors.items():
            if files.weight_map is None or files.weight_map.get(fqn) == name:
                shards.setdefault(fqn, []).append(_place(name, fqn, tensor, info))
    for fqn, name in (files.weight_map or {}).items():
        if fqn not in shards:
            raise CorruptCheckpointError(
                f"the index says that {fqn[:200]!r} is in {name}, and it is not", key=where, hint="make the index anew"
            )
    metadata = Metadata(state_dict_metadata={}, planner_data={}, storage_data={})
    for fqn in sorted(shards):
        _add(metadata, fqn, shards[fqn], where)
    return metadata


def _add(metadata: Metadata, fqn: str, shards: list[_Shard], where: str) -> None:
    first = shards[0]
    key = f"{where}/{first.file}"
    if len({(shard.tensor.dtype, len(shard.offsets), shard.whole) for shard in shards}) > 1:
        raise CorruptCheckpointError(f"the shards of {fqn!r} are not of one tensor", key=key)
    # Where nobody says how large the whole tensor is, it ends where its last shard does.
    whole = first.whole or tuple(map(max, zip(*(shard.reach for shard in shards), strict=True)))
    unique: dict[Box, _Shard] = {}
    for shard in shards:
        if shard.box in unique and not shard.is_placed:
            raise CorruptCheckpointError(
                f"{fqn!r} is in two files", key=key, cause=f"the other one is {unique[shard.box].file}, and no index "
                "says which is meant", hint="give the URI of one file, or write an index",
            )  # fmt: skip
        if math.prod(shard.tensor.shape) or not math.prod(whole):
            unique.setdefault(shard.box, shard)
    fault = find_tiling_fault(whole, list(unique), may_have_holes=True)
    if fault is not None:
        raise CorruptCheckpointError(f"the shards of {fqn!r} do not fit together", key=key, cause=fault)
    fault = find_tiling_fault(whole, list(unique))
    if fault is not None:
        raise IncompleteCheckpointError(
            f"shards of {fqn!r} are missing", key=key, cause=fault, hint="store the missing file anew, or save again"
        )
    chunks = [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in unique]
    properties = TensorProperties(dtype=first.tensor.dtype)
    metadata.state_dict_metadata[fqn] = TensorStorageMetadata(properties, torch.Size(whole), chunks)
    metadata.planner_data[fqn] = (fqn,)
    for box, shard in unique.items():
        metadata.storage_data[MetadataIndex(fqn, torch.Size(box.offsets))] = to_storage_info(_item(shard))


def _item(shard: _Shard) -> StoredItem:
    start, nbytes = shard.tensor.start, shard.tensor.nbytes
    raw = RawData(offset=start, size_bytes=nbytes, strides=None, crc32=None)
    return StoredItem(key=shard.file, offset=start, size_bytes=nbytes, raw=raw)


def _sharding_info(name: str, file: OpenFile) -> Mapping[str, object] | None:
    text = file.header.metadata.get(SHARDING_INFO)
    return None if text is None else load_json(text.encode("utf-8", "replace"), key=name)


def _place(name: str, fqn: str, tensor: FileTensor, info: Mapping[str, object] | None) -> _Shard:
    if info is None:
        offsets: tuple[int, ...] = (0,) * len(tensor.shape)
        return _Shard(file=name, tensor=tensor, offsets=offsets, whole=None, is_placed=False)
    entry = info.get(fqn)
    values = entry if isinstance(entry, dict) else {}
    saved, whole = _numbers(values.get(SAVED_OFFSETS), tensor), _numbers(values.get(GLOBAL_SHAPE), tensor)
    if saved is None or (whole is None and GLOBAL_SHAPE in values):
        raise CorruptCheckpointError(f"the file does not say where its shard of {fqn[:200]!r} lies", key=name)
    return _Shard(file=name, tensor=tensor, offsets=saved, whole=whole, is_placed=True)


def _numbers(values: object, tensor: FileTensor) -> tuple[int, ...] | None:
    if not isinstance(values, list) or len(values) != len(tensor.shape):
        return None
    return tuple(values) if all(type(value) is int and 0 <= value < 2**62 for value in values) else None
