"""Reading boxes of stored tensors into any memory, as one load."""

from __future__ import annotations

import io

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_cloud.checkpoint.tiling import Box


class BoxPlanner(LoadPlanner):
    """Plans reads of boxes and gives their targets; the name of a target is its number."""

    def __init__(self) -> None:
        self._items: list[ReadItem] = []
        self._targets: list[torch.Tensor] = []

    def add(self, fqn: str, entry: TensorStorageMetadata, box: Box, target: torch.Tensor) -> None:
        """Plan to read a box, from whatever chunks of the tensor it touches.

        Args:
            fqn: The tensor's name.
            entry: The tensor.
            box: The box, within the whole tensor.
            target: Where it goes, of the box's shape.
        """
        for chunk in entry.chunks:
            low = tuple(map(max, box.offsets, chunk.offsets))
            high = tuple(
                min(a + n, b + m) for a, n, b, m in zip(box.offsets, box.sizes, chunk.offsets, chunk.sizes, strict=True)
            )
            if any(start >= stop for start, stop in zip(low, high, strict=True)):
                continue
            part = target
            for dim, (start, stop) in enumerate(zip(low, high, strict=True)):
                part = part.narrow(dim, start - box.offsets[dim], stop - start)
            self._items.append(
                ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=MetadataIndex(str(len(self._targets))),
                    dest_offsets=torch.Size([0] * len(low)),
                    storage_index=MetadataIndex(fqn, chunk.offsets),
                    storage_offsets=torch.Size([a - b for a, b in zip(low, chunk.offsets, strict=True)]),
                    lengths=torch.Size(part.shape),
                )
            )
            self._targets.append(part)

    def create_local_plan(self) -> LoadPlan:
        """Give the reads."""
        return LoadPlan(self._items)

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """Give the target of a read."""
        return self._targets[int(read_item.dest_index.fqn)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Do nothing: the target is the caller's memory."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Never called: boxes are of tensors."""
        raise NotImplementedError

    def set_up_planner(self, *_: object, **__: object) -> None:
        """Do nothing: the reads are added one by one."""

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return central_plan
