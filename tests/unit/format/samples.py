"""Metadata to store, and the hostile object that is hidden in it."""

from __future__ import annotations

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_cloud.format.metadata import load_metadata

KEY = "run/.metadata"


def sample(planner_data: object = None) -> Metadata:
    chunk = ChunkStorageMetadata(offsets=torch.Size([0, 0]), sizes=torch.Size([2, 3]))
    properties = TensorProperties(dtype=torch.bfloat16, memory_format=torch.channels_last)
    return Metadata(
        state_dict_metadata={
            "w": TensorStorageMetadata(properties=properties, size=torch.Size([2, 3]), chunks=[chunk]),
            "step": BytesStorageMetadata(),
        },
        planner_data=planner_data,
        storage_data={
            MetadataIndex("w", [0, 0], 0): _StorageInfo("__0_0.distcp", 10, 2000),
            MetadataIndex("step"): _StorageInfo("__0_0.distcp", 0, 10),
        },
        storage_meta=StorageMeta(checkpoint_id="s3://b/p", save_id="1"),
    )


def load(data: bytes) -> Metadata:
    return load_metadata(data, key=KEY)


class Call:
    """Pickles to a call."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts
