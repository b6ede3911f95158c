"""Whether boxes tile a tensor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_cloud.checkpoint.tiling import Box, check_tiling, find_tiling_fault
from dcp_cloud.errors import CorruptCheckpointError

LENGTHS = st.lists(st.integers(0, 5), min_size=0, max_size=3)


def elements(box: Box) -> list[tuple[int, ...]]:
    return list(
        itertools.product(*(range(start, start + size) for start, size in zip(box.offsets, box.sizes, strict=True)))
    )


@st.composite
def shapes_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    shape = tuple(draw(LENGTHS))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        offsets = tuple(draw(st.integers(0, length)) for length in shape)
        boxes.append(Box(offsets, tuple(draw(st.integers(0, length)) for length in shape)))
    return shape, boxes


@given(shapes_and_boxes())
def test_a_fault_is_found_exactly_when_an_element_is_not_in_one_box(case):
    """Boxes tile a tensor if they stay inside, and each element lies in one of them; equal boxes count once."""
    shape, boxes = case
    held = [element for box in set(boxes) for element in elements(box)]
    whole = elements(Box((0,) * len(shape), shape))
    inside = all(o + s <= n for box in boxes for o, s, n in zip(box.offsets, box.sizes, shape, strict=True))
    assert (find_tiling_fault(shape, boxes) is None) == (inside and sorted(held) == whole)


@given(shapes_and_boxes())
def test_holes_can_be_allowed(case):
    """With holes allowed, only overlaps and boxes that leave the tensor are faults."""
    shape, boxes = case
    held = [element for box in set(boxes) for element in elements(box)]
    inside = all(o + s <= n for box in boxes for o, s, n in zip(box.offsets, box.sizes, shape, strict=True))
    found = find_tiling_fault(shape, boxes, may_have_holes=True)
    assert (found is None) == (inside and len(set(held)) == len(held))


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ([Box((0, 0), (2, 3))], "its chunks hold 6 of 12 elements"),
        ([Box((0, 0), (3, 3)), Box((2, 0), (2, 3))], "the chunks at [0, 0] and [2, 0] overlap"),
        ([Box((0, 0), (5, 3))], "the chunk at [0, 0] of size [5, 3] leaves the shape [4, 3]"),
    ],
)
def test_faults_are_put_into_words(boxes, text):
    """The message names the chunks by their offsets."""
    assert find_tiling_fault((4, 3), boxes) == text


def test_many_shards_of_any_dimension_are_checked_fast():
    """Thousands of shards along either dimension take no quadratic time: they are swept where they differ."""
    many = 20_000
    for dim in (0, 1):
        shape = tuple(many if d == dim else 8 for d in (0, 1))
        boxes = [
            Box(tuple(n if d == dim else 0 for d in (0, 1)), tuple(1 if d == dim else 8 for d in (0, 1)))
            for n in range(many)
        ]
        assert math.prod(shape) == sum(math.prod(box.sizes) for box in boxes)
        assert find_tiling_fault(shape, boxes) is None


@pytest.mark.parametrize("may_have_holes", [False, True])
def test_shards_that_lie_across_each_other_are_checked_fast(may_have_holes):
    """However a forger lays tens of thousands of chunks, time does not grow with the square of their number."""
    many = 20_000
    steps = [Box((n, n), (many - n, 1)) for n in range(many)]
    fault = None if may_have_holes else f"its chunks hold {many * (many + 1) // 2} of {many**2} elements"
    assert find_tiling_fault((many, many), steps, may_have_holes=may_have_holes) == fault
    deep = [Box((n, n, n % 2), (many - n, 1, 1)) for n in range(many)]
    fault = find_tiling_fault((many, many, 2), deep, may_have_holes=may_have_holes)
    assert fault is not None
    assert ("across each other" in fault) == may_have_holes


def test_a_grid_in_three_dimensions_is_checked_fast():
    """Experts cut by three kinds of parallelism at once tile in one pass, and one chunk that is moved is seen."""
    boxes = [Box((a, b, c), (1, 1, 1)) for a in range(32) for b in range(32) for c in range(32)]
    assert find_tiling_fault((32, 32, 32), boxes) is None
    assert find_tiling_fault((32, 32, 33), [*boxes[1:], Box((0, 0, 32), (1, 1, 1))]) is not None


def _table(*chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> Metadata:
    places = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in chunks]
    return Metadata({"w": TensorStorageMetadata(TensorProperties(), torch.Size((4, 3)), places)})


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([((0, 0), (3, 3))], "hold 9 of 12 elements"),
        ([((0, 0), (2, 3)), ((1, 0), (3, 3))], "overlap"),
        ([((0, 0), (2, 3)), ((0, 0), (2, 3))], "hold 6 of 12 elements"),
        ([], "hold 0 of 12 elements"),
    ],
)
def test_a_load_refuses_a_table_that_leaves_elements_out(chunks, text):
    """What no chunk covers would keep whatever was in memory, so a commit with a hole or an overlap is damaged."""
    with pytest.raises(CorruptCheckpointError, match=text) as caught:
        check_tiling(_table(*chunks), key="run/.metadata", may_have_holes=False)
    assert "'w'" in str(caught.value)


def test_a_load_takes_tables_that_tile():
    """One chunk, several, and the part that a rank's own commit lists are fine."""
    check_tiling(_table(((0, 0), (4, 3))), key="k", may_have_holes=False)
    check_tiling(_table(((0, 0), (2, 3)), ((2, 0), (2, 3))), key="k", may_have_holes=False)
    check_tiling(_table(((0, 0), (2, 3))), key="k", may_have_holes=True)
