from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.config import MIB
from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import StoreLimits
from dcp_cloud.transfer.ranges import Extent, Fetch, Slice, plan_fetches, upload_part_bytes

extents = st.lists(
    st.builds(
        lambda key, start, length: Extent(key, start, start + length),
        st.sampled_from(["a", "b"]),
        st.integers(0, 200),
        st.integers(1, 60),
    ),
    max_size=12,
)


def wanted_bytes(planned: list[Extent]) -> set[tuple[str, int]]:
    return {(extent.key, offset) for extent in planned for offset in range(extent.start, extent.stop)}


@given(extents, st.integers(0, 20), st.integers(1, 70))
def test_every_wanted_byte_is_fetched_exactly_once(planned: list[Extent], gap: int, longest: int) -> None:
    """No byte is left out, none is fetched twice, and unwanted ones come only as gaps."""
    fetches = plan_fetches(planned, max_gap_bytes=gap, max_fetch_bytes=longest)
    fetched = Counter((fetch.key, offset) for fetch in fetches for offset in range(fetch.start, fetch.stop))
    assert wanted_bytes(planned) <= fetched.keys()
    assert set(fetched.values()) <= {1}


@given(extents, st.integers(0, 20), st.integers(1, 70))
def test_the_slices_bring_each_extent_whole_and_in_order(planned: list[Extent], gap: int, longest: int) -> None:
    """The slices of an extent, laid end to end in the order of the fetches, are the extent."""
    reached = [extent.start for extent in planned]
    for fetch in plan_fetches(planned, max_gap_bytes=gap, max_fetch_bytes=longest):
        for piece in fetch.slices:
            assert fetch.key == planned[piece.index].key
            assert piece.start == reached[piece.index] < piece.stop
            reached[piece.index] = piece.stop
    assert reached == [extent.stop for extent in planned]


@given(extents, st.integers(0, 20), st.integers(1, 70))
def test_fetches_are_bounded_ascending_and_tight(planned: list[Extent], gap: int, longest: int) -> None:
    """A fetch is no longer than allowed, begins and ends with wanted bytes, and carries no gap above the bound."""
    fetches = plan_fetches(planned, max_gap_bytes=gap, max_fetch_bytes=longest)
    assert [(fetch.key, fetch.start) for fetch in fetches] == sorted((fetch.key, fetch.start) for fetch in fetches)
    wanted = wanted_bytes(planned)
    for fetch in fetches:
        assert fetch.stop - fetch.start <= longest
        starts = [piece.start for piece in fetch.slices]
        assert starts == sorted(starts)
        unwanted_run = 0
        for offset in range(fetch.start, fetch.stop):
            unwanted_run = 0 if (fetch.key, offset) in wanted else unwanted_run + 1
            assert unwanted_run <= gap
        assert {(fetch.key, fetch.start), (fetch.key, fetch.stop - 1)} <= wanted


def test_a_gap_of_exactly_the_bound_is_carried_and_one_more_is_not() -> None:
    """The bound is the largest gap that one request carries along."""
    near, far = Extent("a", 14, 20), Extent("a", 15, 20)
    assert plan_fetches([Extent("a", 0, 10), near], max_gap_bytes=4, max_fetch_bytes=100) == (
        Fetch("a", 0, 20, (Slice(0, 0, 10), Slice(1, 14, 20))),
    )
    assert len(plan_fetches([Extent("a", 0, 10), far], max_gap_bytes=4, max_fetch_bytes=100)) == 2


def test_a_short_extent_inside_a_long_one_does_not_end_the_run() -> None:
    """What counts as a gap is measured from the furthest byte so far, not from the last extent's end."""
    planned = [Extent("a", 0, 100), Extent("a", 5, 6), Extent("a", 101, 110)]
    assert len(plan_fetches(planned, max_gap_bytes=1, max_fetch_bytes=1000)) == 1


def test_cuts_lie_at_multiples_of_the_longest_fetch() -> None:
    """Offsets of a long read are round, whatever its own start."""
    fetches = plan_fetches([Extent("a", 5, 35)], max_gap_bytes=0, max_fetch_bytes=10)
    assert [(fetch.start, fetch.stop) for fetch in fetches] == [(5, 10), (10, 20), (20, 30), (30, 35)]


def limits(**changes: int) -> StoreLimits:
    values = {"min_part_bytes": 5, "max_part_bytes": 100, "max_parts": 10, "max_put_bytes": 100}
    return StoreLimits(**(values | changes), max_object_bytes=10**15)


@given(
    st.integers(0, 10**13),
    st.integers(1, 10**9),
    st.integers(1, 10**7),
    st.integers(10**7, 10**10),
    st.integers(1, 10_000),
)
def test_parts_lie_within_the_limits_and_suffice(size: int, wished: int, least: int, most: int, parts: int) -> None:
    """Whatever fits the provider's limits at all gets a part length within them."""
    bounds = limits(min_part_bytes=least, max_part_bytes=most, max_parts=parts)
    if size > most * parts:
        with pytest.raises(ConfigError, match="does not fit"):
            upload_part_bytes(size, part_size_bytes=wished, limits=bounds)
        return
    length = upload_part_bytes(size, part_size_bytes=wished, limits=bounds)
    assert least <= length <= most
    assert length * parts >= size
    if least <= wished <= most and wished * parts >= size:
        assert wished <= length <= wished + -(-wished // 32)


@pytest.mark.parametrize(
    ("size", "wished", "expected"),
    [
        (0, 16, 16),
        (160, 16, 16),
        (161, 16, 100),  # 17 would do; rounding it up to whole MiB ends at the provider's maximum
        (1000, 16, 100),
        (50, 3, 5),
        (50, 1000, 100),
        (97, 16, 17),  # six parts of 16 and one of 1
        (100, 16, 16),  # six parts of 16 and one of 4
    ],
)
def test_edges_of_the_part_length(size: int, wished: int, expected: int) -> None:
    """The wish is raised to the minimum, lowered to the maximum, and raised for many parts or a short rest."""
    assert upload_part_bytes(size, part_size_bytes=wished, limits=limits()) == expected


def test_a_gibibyte_of_tensors_and_their_headers_has_no_short_last_part() -> None:
    """64 parts of 16 MiB hold 64 tensors of 16 MiB; what is around them takes no 65th."""
    s3 = limits(min_part_bytes=5 * MIB, max_part_bytes=5 * 1024 * MIB, max_parts=10_000)
    size = 64 * (16 * MIB + 1472)
    length = upload_part_bytes(size, part_size_bytes=16 * MIB, limits=s3)
    assert -(-size // length) == 64


def test_raised_parts_are_whole_mebibytes() -> None:
    """An object of 200 GiB in 10,000 parts has parts of 21 MiB, not of 20.48."""
    s3 = limits(min_part_bytes=5 * MIB, max_part_bytes=5 * 1024 * MIB, max_parts=10_000)
    assert upload_part_bytes(200 * 1024 * MIB, part_size_bytes=16 * MIB, limits=s3) == 21 * MIB
