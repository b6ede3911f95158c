"""What a checkpoint holds, as records: tensors, their chunks, values, objects, and sums over them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import torch

from dcp_cloud.checkpoint.catalog import CheckpointState
from dcp_cloud.format.layout import StoredItem
from dcp_cloud.stores.base import ObjectMeta

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One stored chunk of a tensor, or a byte item.

    Args:
        fqn: Name of the tensor or value.
        stored: Where its bytes are; None if the commit does not say so in a way that makes sense.
        rank: Rank that wrote it, read from the object's name; None if the name tells none.
        offsets: Where the chunk begins in the tensor, elements; empty for a byte item.
        sizes: Its shape.
        size_bytes: Length of its values; for a byte item the stored length.
        is_tensor: Whether it is a chunk of a tensor.
    """

    fqn: str
    stored: StoredItem | None
    rank: int | None
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    size_bytes: int
    is_tensor: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor of the checkpoint.

    Args:
        fqn: Its name in the state dict.
        shape: Its whole shape.
        dtype: Its element type.
        size_bytes: Length of the values that are stored.
        shards: Its chunks, by offset.
        commit_rank: Rank whose own commit lists it; None in a checkpoint of all ranks.
    """

    fqn: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    size_bytes: int
    shards: tuple[Shard, ...]
    commit_rank: int | None

    @property
    def dtype_name(self) -> str:
        """The dtype without ``torch.``."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntry:
    """A data object that the checkpoint names.

    Args:
        key: Key relative to the checkpoint.
        size_bytes: Its length; None if it is missing.
        items: Number of items that should be in it.
        items_bytes: Their length together.
    """

    key: str
    size_bytes: int | None
    items: int
    items_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A sum over tensors.

    Args:
        name: Of what.
        tensors: How many.
        elements: Their stored elements.
        size_bytes: Length of their stored values.
    """

    name: str
    tensors: int
    elements: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A record of the commit that makes no sense.

    Args:
        fqn: Name of the tensor or value.
        key: The object it names, or the commit.
        cause: What is wrong with it.
    """

    fqn: str
    key: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointContents:
    """A checkpoint, as its commit describes it.

    Args:
        uri: Where it is, without options.
        state: ``complete`` or ``rank-local``.
        save_id: Id of the save, if the writer recorded one.
        version: Version of torch's layout that the commit states, if it does.
        committed_at: When it was committed, if the store tells.
        commits: Keys of the commits.
        commit_bytes: Their length together.
        tensors: By name; in a rank-local checkpoint each rank's own, by name and rank.
        values: Everything that is no tensor, the same way.
        objects: The data objects that it names, by key.
        unnamed: Objects below its prefix that it does not name, by key.
        damage: Records that make no sense.
    """

    uri: str
    state: CheckpointState
    save_id: str | None
    version: str | None
    committed_at: datetime | None
    commits: tuple[str, ...]
    commit_bytes: int
    tensors: tuple[TensorEntry, ...]
    values: tuple[Shard, ...]
    objects: tuple[ObjectEntry, ...]
    unnamed: tuple[ObjectMeta, ...]
    damage: tuple[Damage, ...]

    def shards(self) -> Iterator[Shard]:
        """Give all chunks of all tensors, and all byte items."""
        for tensor in self.tensors:
            yield from tensor.shards
        yield from self.values

    @property
    def data_bytes(self) -> int:
        """Length of the data objects that are there."""
        return sum(entry.size_bytes or 0 for entry in self.objects)

    def by_dtype(self) -> list[Total]:
        """Sum up the tensors of each dtype, largest first."""
        return _totals(self.tensors, lambda tensor: tensor.dtype_name)

    def by_module(self, depth: int) -> list[Total]:
        """Sum up the tensors whose names begin alike, in the order of names.

        Args:
            depth: How many segments of the name count, at least 1.
        """
        totals = _totals(self.tensors, lambda tensor: ".".join(tensor.fqn.split(".")[:depth]))
        return sorted(totals, key=lambda total: natural(total.name))


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Make a sort key that puts ``layers.9`` before ``layers.10``.

    Args:
        name: Any name.

    Returns:
        A key to compare by.
    """
    return tuple(
        (0, int(part), "") if part.isdecimal() and len(part) <= 18 else (1, 0, part) for part in _DIGITS.split(name)
    )


def _totals(tensors: Iterable[TensorEntry], name_of: Callable[[TensorEntry], str]) -> list[Total]:
    sums: dict[str, list[int]] = {}
    for tensor in tensors:
        total = sums.setdefault(name_of(tensor), [0, 0, 0])
        total[0] += 1
        total[1] += sum(math.prod(shard.sizes) for shard in tensor.shards)
        total[2] += tensor.size_bytes
    totals = [Total(name=name, tensors=n, elements=e, size_bytes=b) for name, (n, e, b) in sums.items()]
    return sorted(totals, key=lambda total: (-total.size_bytes, total.name))
