"""Which tensors of a save go to which file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from dcp_cloud.errors import ConfigError, UnsupportedFormatError
from dcp_cloud.format.safetensors import TensorSpec, dtype_name
from dcp_cloud.huggingface.naming import (
    DCP_VERSION,
    FILE_ID,
    FORMAT_METADATA,
    GLOBAL_SHAPE,
    SAVED_OFFSETS,
    SHARDING_INFO,
    model_file,
    shard_file,
)

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A file that a rank is to write.

    Args:
        name: Its name.
        items: Its tensors, each name once.
    """

    name: str
    items: tuple[WriteItem, ...]

    def metadata(self, file_id: str, *, is_sharded: bool) -> dict[str, str]:
        """Make the texts of the file's header.

        Args:
            file_id: What the commit will call the file.
            is_sharded: Whether to say where each shard lies in its tensor.
        """
        texts = {**FORMAT_METADATA, FILE_ID: file_id}
        if not is_sharded:
            return texts
        info = {item.index.fqn: _placement(item) for item in self.items}
        return {**texts, **DCP_VERSION, SHARDING_INFO: json.dumps(info)}


@dataclass(frozen=True, slots=True)
class FilePlanner:
    """Names the files of a save.

    Args:
        numbers: Tensor to number of its file, from 1 on; None for one file.
    """

    numbers: Mapping[str, int] | None

    @property
    def count(self) -> int:
        """How many files of whole tensors there are."""
        return max(self.numbers.values(), default=1) if self.numbers else 1

    def check(self, items: Iterable[WriteItem], *, may_be_shards: bool) -> None:
        """Refuse, before anything is stored, what safetensors files cannot hold.

        Args:
            items: Items of a plan.
            may_be_shards: Whether parts of tensors may be stored.

        Raises:
            UnsupportedFormatError: There are values that are no tensors, or dtypes that the format does not have.
            ConfigError: A tensor has no file, or is sharded.
        """
        others, shards, homeless = [], [], []
        for item in items:
            data = item.tensor_data
            if data is None:
                others.append(item.index.fqn)
                continue
            dtype_name(data.properties.dtype, tensor=item.index.fqn)
            if tuple(data.chunk.sizes) != tuple(data.size) and not may_be_shards:
                shards.append(item.index.fqn)
            if self.numbers is not None and item.index.fqn not in self.numbers:
                homeless.append(item.index.fqn)
        if others:
            raise UnsupportedFormatError(
                f"safetensors files hold tensors only; {len(others)} other values cannot be stored",
                cause=_some(others),
                hint="save the model's state dict alone, or use CloudStorageWriter, which stores every value",
            )
        if shards:
            raise ConfigError(
                f"{len(shards)} tensors are sharded, and whole ones are to be stored",
                cause=_some(shards),
                hint="pass save_distributed=True (and enable_consolidation=True), or gather the state dict first",
            )
        if homeless:
            raise ConfigError(
                f"fqn_to_index_mapping has no file for {len(homeless)} tensors",
                cause=_some(homeless),
                hint="give every tensor of the state dict a number from 1 on",
            )

    def whole_files(self, plans: Sequence[SavePlan]) -> list[dict[int, str]]:
        """Name the files of whole tensors for all ranks.

        torch's writer gives all ranks the same names, so that the last one to write a file wins. Here ranks that share
        a number get files of their own, and all files are numbered anew.

        Args:
            plans: The plans of all ranks.

        Returns:
            For each rank: number to file.
        """
        used = [sorted({self._number(item) for item in plan.items}) for plan in plans]
        pairs = sorted((number, rank) for rank, numbers in enumerate(used) for number in numbers)
        if len({number for number, _ in pairs}) == len(pairs):
            return [{number: model_file(number, self.count) for number in numbers} for numbers in used]
        names = {pair: model_file(place, len(pairs)) for place, pair in enumerate(pairs, start=1)}
        return [{number: names[number, rank] for number in numbers} for rank, numbers in enumerate(used)]

    def files(self, items: Iterable[WriteItem], names: Mapping[int, str]) -> list[PlannedFile]:
        """Sort whole tensors into files.

        Args:
            items: This rank's items.
            names: Number to file.
        """
        found: dict[int, list[WriteItem]] = {}
        for item in items:
            found.setdefault(self._number(item), []).append(item)
        return [PlannedFile(name=names[number], items=tuple(found[number])) for number in sorted(found)]

    def shard_files(self, items: Iterable[WriteItem], rank: int) -> list[PlannedFile]:
        """Sort shards into files; a second shard of the same name goes to a file of its own.

        Args:
            items: This rank's items.
            rank: This rank.
        """
        found: dict[tuple[int, int], list[WriteItem]] = {}
        layers: dict[str, int] = {}
        for item in items:
            layer = layers[item.index.fqn] = layers.get(item.index.fqn, -1) + 1
            found.setdefault((self._number(item), layer), []).append(item)
        return [
            PlannedFile(name=shard_file(rank, layer, number, self.count), items=tuple(found[number, layer]))
            for number, layer in sorted(found)
        ]

    def _number(self, item: WriteItem) -> int:
        return 1 if self.numbers is None else self.numbers[item.index.fqn]


def spec_of(item: WriteItem) -> TensorSpec:
    """Describe what an item stores."""
    data = item.tensor_data
    assert data is not None  # noqa: S101 - checked when the save was planned
    return TensorSpec(name=item.index.fqn, dtype=data.properties.dtype, shape=tuple(data.chunk.sizes))


def _placement(item: WriteItem) -> dict[str, list[int]]:
    data = item.tensor_data
    assert data is not None  # noqa: S101 - checked when the save was planned
    return {SAVED_OFFSETS: list(data.chunk.offsets), GLOBAL_SHAPE: list(data.size)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
