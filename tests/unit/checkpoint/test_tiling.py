"""Whether boxes tile a tensor."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.checkpoint.tiling import Box, find_tiling_fault

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
