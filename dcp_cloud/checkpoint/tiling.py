"""Whether boxes tile a tensor: every element in exactly one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_cloud.errors import CorruptCheckpointError


@dataclass(frozen=True, slots=True)
class Box:
    """A chunk's place in its tensor.

    Args:
        offsets: Where it begins, elements.
        sizes: Its shape.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def overlaps(self, other: Box) -> bool:
        """Tell whether two boxes share an element."""
        return all(
            a < b + b_size and b < a + a_size
            for a, a_size, b, b_size in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        )


def find_tiling_fault(shape: Sequence[int], boxes: Sequence[Box], *, may_have_holes: bool = False) -> str | None:
    """Find out why boxes do not tile a tensor.

    Args:
        shape: Shape of the tensor.
        boxes: Boxes with as many dimensions.
        may_have_holes: Whether they may cover only part of it.

    Returns:
        What is wrong, or None if they do.
    """
    for box in boxes:
        if any(begin + size > whole for begin, size, whole in zip(box.offsets, box.sizes, shape, strict=True)):
            return f"the chunk at {list(box.offsets)} of size {list(box.sizes)} leaves the shape {list(shape)}"
    solid = list({box for box in boxes if math.prod(box.sizes)})
    pair = _find_overlap(solid)
    if pair is not None:
        return f"the chunks at {list(pair[0].offsets)} and {list(pair[1].offsets)} overlap"
    covered, volume = sum(math.prod(box.sizes) for box in solid), math.prod(shape)
    if covered < volume and not may_have_holes:
        return f"its chunks hold {covered} of {volume} elements"
    return None


def check_tiling(metadata: Metadata, *, key: str, may_have_holes: bool) -> None:
    """See that the chunks of every tensor cover it once: what no chunk covers would stay in memory as it was.

    Args:
        metadata: A table of contents whose shapes make sense.
        key: Key of the commit, for messages.
        may_have_holes: Whether it is one rank's own, which lists the chunks of that rank only.

    Raises:
        CorruptCheckpointError: Chunks of a tensor overlap, or leave some of it out.
    """
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        if len(entry.chunks) == 1 and entry.chunks[0].sizes == entry.size:
            continue  # most tensors of most checkpoints
        boxes = [Box(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
        fault = find_tiling_fault(entry.size, boxes, may_have_holes=may_have_holes)
        if fault is not None:
            raise CorruptCheckpointError(
                "the checkpoint's .metadata is damaged",
                key=key,
                cause=f"{name[:200]!r}: {fault}",
                hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
            )


def _find_overlap(boxes: Sequence[Box]) -> tuple[Box, Box] | None:
    """Sweep along the dimension that tells the boxes apart best; only boxes that the sweep line cuts are compared."""
    dims = range(len(boxes[0].offsets)) if boxes else range(0)
    dim = max(dims, key=lambda d: len({box.offsets[d] for box in boxes}), default=None)
    if dim is None:  # scalars: equal boxes were folded into one
        return None
    cut: list[Box] = []
    for box in sorted(boxes, key=lambda one: one.offsets[dim]):
        begin = box.offsets[dim]
        cut = [other for other in cut if other.offsets[dim] + other.sizes[dim] > begin]
        for other in cut:
            if box.overlaps(other):
                return min(box, other, key=lambda one: one.offsets), max(box, other, key=lambda one: one.offsets)
        cut.append(box)
    return None
