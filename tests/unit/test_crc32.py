from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.crc32 import combine_crc32, combine_in_python

Combine = Callable[[int, int, int], int]
_BOTH = pytest.mark.parametrize("combine", [combine_crc32, combine_in_python])


@_BOTH
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_combining_equals_summing_the_whole(combine: Combine, first: bytes, second: bytes) -> None:
    """Checksums of two runs combine to the checksum of both laid end to end."""
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@_BOTH
@given(st.lists(st.binary(max_size=50), max_size=8))
def test_a_chain_of_parts_gives_the_checksum_of_the_object(combine: Combine, parts: list[bytes]) -> None:
    """Folding part after part, empty ones included, gives the object's checksum."""
    crc = 0
    for part in parts:
        crc = combine(crc, zlib.crc32(part), len(part))
    assert crc == zlib.crc32(b"".join(parts))


@_BOTH
@pytest.mark.parametrize("exponent", [12, 20, 24])
def test_long_second_runs(combine: Combine, exponent: int) -> None:
    """The rule holds for runs of the lengths that parts and blocks have."""
    second = bytes(1 << exponent)
    assert combine(zlib.crc32(b"head"), zlib.crc32(second), len(second)) == zlib.crc32(b"head" + second)


@_BOTH
@pytest.mark.parametrize("pages", [1, 2, 3, 16])
def test_lengths_of_pages_and_blocks(combine: Combine, pages: int) -> None:
    """Lengths that come again and again take another way to the same sums, whatever the first run's sum is."""
    second = bytes(range(256)) * 1024 * pages
    for first in (b"", b"\0", b"\xff" * 5, *(bytes([value]) * 3 for value in range(256))):
        assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@_BOTH
def test_lengths_beyond_32_bits(combine: Combine) -> None:
    """A run of 5 GiB is combined as if it came in two pieces."""
    piece = 5 << 29
    half = combine(0x12345678, 0, piece)
    assert combine(half, 0, piece) == combine(0x12345678, 0, 2 * piece)
