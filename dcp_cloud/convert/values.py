"""The values of a checkpoint that are no tensors, and the nested state dict they belong to."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from dcp_cloud.checkpoint.boxes import BoxPlanner
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.convert.torch_reader import CloudTorchSaveReader
from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.transfer.events import EventHook, only_requests

# Lists of state dicts hold parameter groups and the like; a forged index must not make a list as long as it likes.
_MAX_LIST = 1_000_000


class _ValuePlanner(BoxPlanner):
    """Opens values. The reader has looked into them before: what it does not know to be harmless it has refused."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.values[read_item.dest_index.fqn] = torch.load(value, weights_only=False, map_location="cpu")


def read_values(
    reader: CloudStorageReader, metadata: Metadata, names: Sequence[str], *, hook: EventHook
) -> dict[str, Any]:
    """Read values that are no tensors.

    Args:
        reader: Reads the checkpoint; refuses values that are not safe to open, unless it was told otherwise.
        metadata: What its ``read_metadata`` returned.
        names: Their names.
        hook: Told of requests.

    Returns:
        Name to value.

    Raises:
        UnsafeCheckpointError: A value names something that may not be loaded.
    """
    if isinstance(reader, CloudTorchSaveReader):
        return {name: reader.value_of(name) for name in names}
    planner = _ValuePlanner()
    items = [_item(name) for name in names]

    if items:
        reader.fill(metadata, LoadPlan(items), planner, hook=only_requests(hook))
    return planner.values


def nested(flat: Mapping[str, Any], paths: Mapping[str, tuple[str | int, ...]], *, where: str) -> dict[str, Any]:
    """Make the state dict that was flattened.

    Args:
        flat: Name to value.
        paths: Name to path, from the checkpoint; names without one stay as they are.
        where: The checkpoint, for messages.

    Returns:
        The nested state dict.

    Raises:
        CorruptCheckpointError: The paths contradict each other.
    """
    state: dict[str, Any] = {}
    for name, value in flat.items():
        path = paths.get(name, (name,))
        if any(isinstance(part, int) and not 0 <= part < _MAX_LIST for part in path) or not path:
            raise CorruptCheckpointError(f"the path of {name[:200]!r} makes no sense", key=where)
        try:
            set_element(state, path, value)
        except (TypeError, AttributeError, KeyError, IndexError, ValueError, AssertionError) as error:
            raise CorruptCheckpointError(f"{name[:200]!r} has no place in the state", key=where, cause=error) from error
    return state


def _item(name: str) -> ReadItem:
    index = MetadataIndex(name)
    nothing = torch.Size((0,))
    return ReadItem(
        type=LoadItemType.BYTE_IO,
        dest_index=index,
        dest_offsets=nothing,
        storage_index=index,
        storage_offsets=nothing,
        lengths=nothing,
    )
