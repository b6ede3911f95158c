"""Whether boxes tile a tensor: every element in exactly one of them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_cloud.errors import CorruptCheckpointError

# A box has two corners to the power of this.
_MAX_CORNER_DIMENSIONS = 6
# Of boxes cut in three dimensions and more, where they do not tile.
_COMPARISONS_PER_BOX = 16


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
    covered, volume = sum(math.prod(box.sizes) for box in solid), math.prod(shape)
    cut_dims = [d for d, whole in enumerate(shape) if any(box.sizes[d] != whole for box in solid)]
    is_settled = True
    if len(cut_dims) <= 2:
        pair = _sweep(solid, cut_dims)
    elif covered == volume and len(cut_dims) <= _MAX_CORNER_DIMENSIONS and _do_corners_cancel(shape, solid, cut_dims):
        return None
    else:
        pair, is_settled = _compare(solid, cut_dims)
    if pair is not None:
        first, second = sorted(pair, key=lambda box: box.offsets)
        return f"the chunks at {list(first.offsets)} and {list(second.offsets)} overlap"
    if covered < volume and not may_have_holes:
        return f"its chunks hold {covered} of {volume} elements"
    return None if is_settled else f"its {len(solid)} chunks lie across each other, as no writer cuts a tensor"


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


def _sweep(boxes: Sequence[Box], dims: Sequence[int]) -> tuple[Box, Box] | None:
    """Find two boxes that overlap, of boxes that are cut in two dimensions at most.

    A line goes along the first. The boxes on it, which do not overlap, lie in order along the second, so each new one
    is compared with its neighbours only: time grows with the number of boxes, however they lie.
    """
    if not dims:  # equal boxes were folded into one
        return None
    dim, across = dims[0], dims[-1]
    on_line: list[tuple[int, int, Box]] = []
    for box in sorted(boxes, key=lambda one: one.offsets[dim]):
        now = box.offsets[dim]
        begin, end = (box.offsets[across], _end(box, across)) if across != dim else (0, 1)
        place = bisect.bisect(on_line, begin, key=_begin_across)
        # What the line has left behind is dropped when it is met.
        while place and _end(on_line[place - 1][2], dim) <= now:
            place -= 1
            del on_line[place]
        while place < len(on_line) and on_line[place][0] < end and _end(on_line[place][2], dim) <= now:
            del on_line[place]
        if place and on_line[place - 1][1] > begin:
            return on_line[place - 1][2], box
        if place < len(on_line) and on_line[place][0] < end:
            return on_line[place][2], box
        on_line.insert(place, (begin, end, box))
    return None


def _begin_across(entry: tuple[int, int, Box]) -> int:
    return entry[0]


def _end(box: Box, dim: int) -> int:
    return box.offsets[dim] + box.sizes[dim]


def _do_corners_cancel(shape: Sequence[int], boxes: Sequence[Box], dims: Sequence[int]) -> bool:
    """Tell whether the corners of boxes leave just those of the whole, with signs: then every element is in one box.

    The number of boxes that an element is in is the sum of the signs of all corners that are at most at its place in
    every dimension; so the boxes tile the whole exactly if their corners add up to its own. That takes one pass.
    """
    corners: dict[tuple[int, ...], int] = {}
    for box in boxes:
        _add_corners(corners, [(box.offsets[dim], _end(box, dim)) for dim in dims], 1)
    _add_corners(corners, [(0, shape[dim]) for dim in dims], -1)
    return not any(corners.values())


def _add_corners(corners: dict[tuple[int, ...], int], spans: Sequence[tuple[int, int]], sign: int) -> None:
    signed: list[tuple[tuple[int, ...], int]] = [((), sign)]
    for begin, end in spans:
        signed = [entry for place, one in signed for entry in (((*place, begin), one), ((*place, end), -one))]
    for place, one in signed:
        corners[place] = corners.get(place, 0) + one


def _compare(boxes: Sequence[Box], dims: Sequence[int]) -> tuple[tuple[Box, Box] | None, bool]:
    """Find two boxes that overlap, of boxes that are cut in many dimensions.

    Returns:
        Two that do, if some were found, and whether all were compared: who can write to the bucket can lay them such
        that it would take the square of their number.
    """
    dim = max(dims, key=lambda d: len({box.offsets[d] for box in boxes}))
    on_line: list[Box] = []
    left = _COMPARISONS_PER_BOX * len(boxes)
    for box in sorted(boxes, key=lambda one: one.offsets[dim]):
        begin = box.offsets[dim]
        left -= len(on_line)
        if left < 0:
            return None, False
        on_line = [other for other in on_line if _end(other, dim) > begin]
        for other in on_line:
            if box.overlaps(other):
                return (other, box), True
        on_line.append(box)
    return None, True
