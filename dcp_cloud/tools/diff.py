"""What differs between two checkpoints: names, shapes, dtypes, and values.

Values are compared by the checksums that were recorded when they were saved, so nothing but the two commits is read.
Where the checksums say nothing, because the tensors were sharded differently or their writer recorded none, the values
themselves can be read and compared; then it is told how far apart they are as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch.distributed.checkpoint.state_dict_loader import load

from dcp_cloud.checkpoint.contents import read_contents
from dcp_cloud.checkpoint.entries import CheckpointContents, Shard, TensorEntry
from dcp_cloud.checkpoint.location import Location
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.events import EventHook, Planned, Progressed, ignore_event

Difference: TypeAlias = Literal["equal", "only in A", "only in B", "shape", "dtype", "kind", "value", "unknown"]
"""How two entries of one name relate; ``kind``: a tensor in one, a value in the other; ``unknown``: not compared."""

_BATCH_BYTES = 512 * 1024**2
# So many elements are compared at once: distances are computed as 8 or 16 bytes each.
_STEP_ELEMENTS = 4 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor or value on one side.

    Args:
        what: ``shape dtype`` of a tensor, ``value`` of anything else.
        size_bytes: Length.
        signature: What tells its values apart by checksum, comparable; None if nothing was recorded.
    """

    what: str
    size_bytes: int
    signature: frozenset[object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffLine:
    """One name, on both sides.

    Args:
        fqn: The name; of a rank's own commit with the rank behind it.
        difference: How the sides relate.
        a: The entry in A, or None.
        b: The entry in B, or None.
        max_abs: Largest distance of two elements, if the values were read and are numbers; where one of the two is
            infinite or not a number there is none.
        changed: Elements that differ, if the values were read.
    """

    fqn: str
    difference: Difference
    a: Entry | None
    b: Entry | None
    max_abs: float | None = None
    changed: int | None = None


def diff_checkpoints(
    a: Location, b: Location, *, read_values: bool = False, hook: EventHook = ignore_event
) -> list[DiffLine]:
    """Compare two checkpoints.

    Args:
        a: The first.
        b: The second.
        read_values: Read the tensors that differ by checksum or cannot be compared by it. Takes memory for two batches
            of 512 MiB, or twice the longest such tensor.
        hook: Told of requests and progress.

    Returns:
        One line for each name, those that are equal included: the names of A in its order, then those that only B has.

    Raises:
        CheckpointError: One of them cannot be read.
        StoreError: A store refused.
    """
    contents = [read_contents(side.store, transfer=side.transfer, hook=hook) for side in (a, b)]
    sides = [_entries(one) for one in contents]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    lines = [_compare(name, sides[0].get(name), sides[1].get(name)) for name in names]
    if not read_values:
        return lines
    tensors = [{entry.fqn: entry for entry in one.tensors if entry.commit_rank is None} for one in contents]
    values = [{entry.fqn: entry for entry in one.values if entry.stored is not None} for one in contents]
    doubtful = [line for line in lines if line.difference in ("value", "unknown")]
    hook(Planned(phase="verify", size_bytes=sum(_size(line) for line in doubtful), items=len(doubtful)))
    read: dict[str, DiffLine] = {}
    for batch in _batches([line for line in doubtful if line.fqn in tensors[0] and line.fqn in tensors[1]]):
        loaded = [_load(side, [found[line.fqn] for line in batch]) for side, found in zip((a, b), tensors, strict=True)]
        for line in batch:
            read[line.fqn] = _compare_tensors(line, loaded[0][line.fqn], loaded[1][line.fqn])
            hook(Progressed(phase="verify", size_bytes=_size(line), items=1))
    for line in doubtful:
        if line.fqn in values[0] and line.fqn in values[1]:
            stored = [_bytes(side, found[line.fqn]) for side, found in zip((a, b), values, strict=True)]
            read[line.fqn] = replace(line, difference="equal" if stored[0] == stored[1] else "value")
            hook(Progressed(phase="verify", size_bytes=_size(line), items=1))
    return [read.get(line.fqn, line) for line in lines]


def _entries(contents: CheckpointContents) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for tensor in contents.tensors:
        name = tensor.fqn if tensor.commit_rank is None else f"{tensor.fqn} (rank {tensor.commit_rank})"
        what = f"{list(tensor.shape)} {tensor.dtype_name}"
        found[name] = Entry(what=what, size_bytes=tensor.size_bytes, signature=_signature(tensor.shards))
    for value in contents.values:
        name = value.fqn if contents.state == "complete" else f"{value.fqn} (rank {value.rank})"
        found[name] = Entry(what="value", size_bytes=value.size_bytes, signature=_signature([value]))
    return found


def _signature(shards: Iterable[Shard]) -> frozenset[object] | None:
    """Name the values by their checksums; equal names mean equal values, other ones only if the chunks are the same."""
    parts: list[object] = []
    for shard in shards:
        stored = shard.stored
        if stored is None or (stored.raw is None and (shard.is_tensor or stored.crc32 is None)):
            return None
        if stored.raw is not None:
            parts.append((shard.offsets, shard.sizes, stored.raw.strides, stored.raw.size_bytes, stored.raw.crc32))
        else:
            parts.append((shard.offsets, shard.sizes, None, stored.size_bytes, stored.crc32))
    return frozenset(parts)


def _compare(name: str, a: Entry | None, b: Entry | None) -> DiffLine:
    return DiffLine(fqn=name, difference=_difference(a, b), a=a, b=b)


def _difference(a: Entry | None, b: Entry | None) -> Difference:
    if a is None or b is None:
        return "only in B" if a is None else "only in A"
    if a.what != b.what:
        if "value" in (a.what, b.what):
            return "kind"
        return "dtype" if a.what.rpartition(" ")[0] == b.what.rpartition(" ")[0] else "shape"
    if a.signature is None or b.signature is None:
        return "unknown"
    if a.signature == b.signature:
        return "equal"
    same_chunks = {part[:4] for part in _parts(a)} == {part[:4] for part in _parts(b)}
    # What a value pickles to may differ where the value does not, but nothing tells that apart.
    return "value" if same_chunks or a.what == "value" else "unknown"


def _parts(entry: Entry) -> Iterator[tuple[object, ...]]:
    for part in entry.signature or ():
        assert isinstance(part, tuple)  # noqa: S101 - made so above
        yield part


def _batches(lines: Iterable[DiffLine]) -> Iterator[list[DiffLine]]:
    batch: list[DiffLine] = []
    nbytes = 0
    for line in lines:
        if batch and nbytes + _size(line) > _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(line)
        nbytes += _size(line)
    if batch:
        yield batch


def _size(line: DiffLine) -> int:
    return line.a.size_bytes if line.a is not None else 0


def _load(side: Location, entries: Iterable[TensorEntry]) -> Mapping[str, torch.Tensor]:
    state = {entry.fqn: torch.empty(entry.shape, dtype=entry.dtype) for entry in entries}
    reader = CloudStorageReader(side.uri, store=side.store, transfer=side.transfer)
    load(state, storage_reader=reader, no_dist=True)
    return state


def _bytes(side: Location, value: Shard) -> bytes:
    assert value.stored is not None  # noqa: S101 - chosen so above
    memory = memoryview(bytearray(value.stored.size_bytes))
    target = Target(key=value.stored.key, start=value.stored.offset, nbytes=memory.nbytes, memory=memory)
    Downloader(side.store, side.transfer).run([target])
    return bytes(memory)


def _compare_tensors(line: DiffLine, a: torch.Tensor, b: torch.Tensor) -> DiffLine:
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    if torch.equal(one, other):
        return replace(line, difference="equal")
    width = a.element_size()
    changed = 0
    for start in range(0, one.numel(), _STEP_ELEMENTS * width):
        piece, other_piece = (side[start : start + _STEP_ELEMENTS * width].view(-1, width) for side in (one, other))
        changed += int((piece != other_piece).any(dim=1).sum())
    return replace(line, difference="value", changed=changed, max_abs=_distance(a.reshape(-1), b.reshape(-1)))


def _distance(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Give the largest distance of two elements that are both finite; None if there is none."""
    kind = torch.complex128 if a.is_complex() else torch.float64
    largest: float | None = None
    for start in range(0, a.numel(), _STEP_ELEMENTS):
        one, other = (side[start : start + _STEP_ELEMENTS] for side in (a, b))
        try:
            distances = (one.to(kind) - other.to(kind)).abs()
        except RuntimeError:  # torch has no such numbers for this dtype: packed 4-bit floats, raw bits
            return None
        finite = distances[distances.isfinite()]
        if finite.numel():
            largest = max(float(finite.max()), largest or 0.0)
    return largest
