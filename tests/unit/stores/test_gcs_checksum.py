"""CRC-32C: over scattered buffers, joined, and in Google's spelling."""

from __future__ import annotations

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.crc32 import combine_crc32c
from dcp_cloud.errors import ChecksumMismatchError
from dcp_cloud.stores.gcs_checksum import (
    check_crc32c,
    crc32c_from_headers,
    crc32c_from_text,
    crc32c_of,
    crc32c_text,
)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_buffers_are_summed_as_one(pieces: list[bytes]):
    """Where the bytes lie does not matter, nor whether they may be written to."""
    views = [memoryview(bytearray(piece)) for piece in pieces]
    assert crc32c_of(views) == google_crc32c.value(b"".join(pieces))


def test_long_buffers_are_summed_in_chunks():
    """A buffer longer than a chunk gives the same sum."""
    data = bytes(range(256)) * 2000 + b"rest"
    assert crc32c_of([memoryview(data)]) == google_crc32c.value(data)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_checksums_of_neighbours_are_joined(first: bytes, second: bytes):
    """The sum of both follows from their sums and the second one's length."""
    joined = combine_crc32c(google_crc32c.value(first), google_crc32c.value(second), len(second))
    assert joined == google_crc32c.value(first + second)


def test_the_published_example_is_met():
    """RFC 3720's check value, and its base64 with the highest byte first."""
    assert crc32c_of([memoryview(b"123456789")]) == 0xE3069283
    assert crc32c_text(0xE3069283) == "4waSgw=="


@given(st.integers(0, 2**32 - 1))
def test_text_and_number_are_the_same(crc: int):
    """Writing and reading again gives the number."""
    assert crc32c_from_text(crc32c_text(crc)) == crc


@pytest.mark.parametrize("text", [None, "", "not base64!"])
def test_what_is_no_checksum_is_none(text: str | None):
    """A server that says nothing, or nonsense, says nothing."""
    assert crc32c_from_text(text) is None


@pytest.mark.parametrize(
    "values",
    [["crc32c=4waSgw==,md5=x"], ["md5=x, crc32c=4waSgw=="], ["md5=x", "crc32c=4waSgw=="], ["crc32c=4waSgw=="]],
)
def test_the_header_is_found_in_every_form(values: list[str]):
    """Both hashes in one field, or a field for each."""
    assert crc32c_from_headers(values) == 0xE3069283


def test_a_header_without_crc32c_is_none():
    """Only an MD5 is no CRC-32C."""
    assert crc32c_from_headers(["md5=x"]) is None


def test_a_difference_is_an_error_and_silence_is_not():
    """Only two different checksums are a mismatch."""
    check_crc32c(None, 1, key="a", what="the object")
    check_crc32c(1, 1, key="a", what="the object")
    with pytest.raises(ChecksumMismatchError, match="the object changed"):
        check_crc32c(2, 1, key="a", what="the object")
