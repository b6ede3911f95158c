from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.transfer.span import Span, crc32_of
from tests.unit.transfer.tools import random_bytes

some_bytes = st.binary(min_size=2, max_size=200)


def split_at(span: Span, lengths: list[int]) -> list[Span]:
    """Cut a span as an upload does: the rest again and again."""
    pieces = []
    for length in lengths:
        if not 0 < length < span.nbytes:
            continue
        head, span = span.split(length)
        pieces.append(head)
    return [*pieces, span]


@given(some_bytes, st.lists(st.integers(1, 60), max_size=6), st.randoms(use_true_random=False))
def test_the_checksum_of_a_split_span_is_that_of_its_bytes(data: bytes, lengths: list[int], draw: object) -> None:
    """However a span is cut, and in whatever order its pieces are sent, its checksum is zlib's."""
    whole = Span.of(data)
    pieces = split_at(whole, lengths)
    assert b"".join(piece.view() for piece in pieces) == data
    order = list(pieces)
    draw.shuffle(order)  # type: ignore[attr-defined]
    for piece in order:
        assert piece.crc32() == zlib.crc32(piece.view())
        piece.forget()
    assert whole.crc32() == zlib.crc32(data)
    assert crc32_of(pieces) == zlib.crc32(data)


@given(some_bytes, st.integers(1, 199), st.integers(1, 199))
def test_heads_can_be_split_as_well(data: bytes, first: int, second: int) -> None:
    """Halves are spans like any other."""
    first, second = min(first, len(data) - 1), min(second, len(data) - 1)
    whole = Span.of(data)
    head, tail = whole.split(first)
    pieces = [*(head.split(second) if second < head.nbytes else (head,)), tail]
    assert b"".join(piece.view() for piece in pieces) == data
    assert whole.crc32() == zlib.crc32(data)


def test_a_span_that_is_cut_into_thousands_of_pieces() -> None:
    """A transformed tensor of many gigabytes is one span: neither its bytes nor its checksum may recurse that deep."""
    data = random_bytes(5001)
    whole = Span.of(data)
    pieces = split_at(whole, [1] * 5000)
    assert len(pieces) == 5001
    assert b"".join(piece.view() for piece in pieces) == data
    assert whole.crc32() == zlib.crc32(data)


def test_an_empty_span_has_the_checksum_of_nothing() -> None:
    """Empty items are legal."""
    assert Span.of(b"").crc32() == 0
    assert crc32_of([]) == 0
    assert crc32_of([Span.of(b""), Span.of(b"ab"), Span.of(b"")]) == zlib.crc32(b"ab")


def test_the_checksum_is_computed_once() -> None:
    """Whoever needs it first computes it; the bytes are not read again."""
    loads: list[int] = []

    def load() -> memoryview:
        loads.append(1)
        return memoryview(b"abc")

    span = Span(3, load)
    assert [span.crc32() for _ in range(3)] == [zlib.crc32(b"abc")] * 3
    assert loads == [1]


def test_a_late_span_is_not_made_before_it_is_asked_for() -> None:
    """A trailer that holds the checksum of the bytes before it can be appended before they are summed."""
    blocks = [Span.of(b"one"), Span.of(b"two")]
    made: list[int] = []

    def trailer() -> memoryview:
        made.append(1)
        return memoryview(crc32_of(blocks).to_bytes(4, "little"))

    late = Span(4, trailer)
    head, tail = late.split(1)
    assert made == []
    assert bytes(head.view()) + bytes(tail.view()) == zlib.crc32(b"onetwo").to_bytes(4, "little")


def test_a_forgotten_span_lets_its_bytes_go_and_keeps_its_checksum() -> None:
    """Memory is given back when the store has the bytes, not when the save ends."""
    data = bytearray(b"abcdef")
    whole = Span.of(data)
    head, tail = whole.split(2)
    head.forget()
    tail.forget()
    data.append(1)  # a buffer that is still looked at cannot be resized
    assert whole.crc32() == zlib.crc32(b"abcdef")


def test_a_span_of_any_memoryview_counts_bytes() -> None:
    """Lengths are bytes, whatever the items of the memory are."""
    view = memoryview(bytes(16)).cast("d")
    assert len(view) == 2
    assert Span.of(view).nbytes == 16
    assert Span.of(view).view().format == "B"


def test_checksums_asked_for_by_many_threads_agree() -> None:
    """A trailer's thread and the part's own thread may ask at once."""
    data = random_bytes(100_000)
    for _ in range(20):
        whole = Span.of(data)
        pieces = split_at(whole, [1000] * 99)
        with ThreadPoolExecutor(3) as threads:
            sums = [threads.submit(whole.crc32), threads.submit(_forget, pieces), threads.submit(whole.crc32)]
        assert [done.result() for done in sums] == [zlib.crc32(data), None, zlib.crc32(data)]


def _forget(pieces: list[Span]) -> None:
    for piece in pieces:
        piece.forget()
