from __future__ import annotations

import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing.wrappers import RecordingStore
from dcp_cloud.testing.wrappers.base import Request, StoreWrapper
from dcp_cloud.transfer.events import Progressed, TransferEvent
from dcp_cloud.transfer.span import Room, Span, crc32_of
from dcp_cloud.transfer.upload import Uploader
from tests.unit.transfer.tools import config, content, keys, memory_store, random_bytes


def send(uploader: Uploader, key: str, spans: list[Span]) -> None:
    upload = uploader.begin(key, expected_bytes=sum(span.nbytes for span in spans))
    for span in spans:
        upload.append(span)
    upload.end()
    assert upload.size_bytes == sum(span.nbytes for span in spans)


@given(
    st.lists(st.integers(0, 70), max_size=6),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 60),
    st.integers(1, 20),
)
def test_any_spans_arrive_as_they_are(
    lengths: list[int], part: int, concurrency: int, max_put: int, min_part: int
) -> None:
    """Whatever the spans, parts and limits: the object is the spans laid end to end, and every span knows its CRC."""
    store = memory_store(max_put_bytes=max_put, min_part_bytes=min_part)
    data = [random_bytes(length, seed) for seed, length in enumerate(lengths)]
    spans = [Span.of(piece) for piece in data]
    with Uploader(store, config(part=part, concurrency=concurrency)) as uploader:
        send(uploader, "k", spans)
        uploader.finish()
    assert content(store, "k") == b"".join(data)
    assert [span.crc32() for span in spans] == [zlib.crc32(piece) for piece in data]
    assert list(store.list_multiparts()) == []


@pytest.mark.parametrize("length", [0, 1, 15, 16])
def test_an_object_of_up_to_one_part_is_one_put(length: int) -> None:
    """Small objects cost one request."""
    store = RecordingStore(memory_store())
    with Uploader(store, config(part=16)) as uploader:
        send(uploader, "k", [Span.of(random_bytes(length))])
        uploader.finish()
    assert [(call.verb, call.size_bytes) for call in store.calls] == [("put", length)]


def test_a_longer_object_has_equal_parts_but_the_last() -> None:
    """Parts are of one length, also where spans end in their middle; the last one may be whole, too."""
    for length, sizes in ((17, [16, 1]), (32, [16, 16]), (50, [16, 16, 16, 2])):
        store = RecordingStore(memory_store())
        with Uploader(store, config(part=16)) as uploader:
            send(uploader, "k", [Span.of(random_bytes(10)), Span.of(random_bytes(length - 10))])
            uploader.finish()
        parts = sorted((call.index, call.size_bytes) for call in store.calls if call.verb == "put_part")
        assert [size for _, size in parts] == sizes
        assert [index for index, _ in parts] == list(range(len(sizes)))
        assert store.count("complete") == store.count("create_multipart") == 1
        assert store.count("put") == 0


def test_an_object_above_the_limit_of_a_put_is_one_part() -> None:
    """What fits into a part but not into a put goes as an upload of a single part."""
    store = RecordingStore(memory_store(max_put_bytes=5))
    with Uploader(store, config(part=16)) as uploader:
        send(uploader, "k", [Span.of(random_bytes(10))])
        uploader.finish()
    assert [call.verb for call in store.calls] == ["create_multipart", "put_part", "complete"]


class _HoldFirstPart(StoreWrapper):
    """Lets the first part arrive after all others."""

    def __init__(self, store: ObjectStore, others: int) -> None:
        super().__init__(store)
        self._others = threading.Semaphore(0)
        self._wanted = others

    def around(self, request, run):
        if request.verb == "put_part" and request.index == 0:
            for _ in range(self._wanted):
                assert self._others.acquire(timeout=20)
        result = run()
        if request.verb == "put_part":
            self._others.release()
        return result


def test_parts_may_arrive_in_any_order() -> None:
    """The object is put together by index, when its last part is in, whichever that is."""
    store = memory_store()
    data = random_bytes(16 * 5 + 3)
    with Uploader(_HoldFirstPart(store, others=5), config(part=16, concurrency=2)) as uploader:
        send(uploader, "k", [Span.of(data)])
        uploader.finish()
    assert content(store, "k") == data


class _CountInFlight(StoreWrapper):
    """Counts the parts under way at once, and lets none end before as many as can be are there."""

    def __init__(self, store: ObjectStore, expected: int) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._now = 0
        self._all_there = threading.Event()
        self._expected = expected
        self.most = 0

    def around(self, request, run):
        if request.verb != "put_part":
            return run()
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            if self._now == self._expected:
                self._all_there.set()
        assert self._all_there.wait(20)
        try:
            return run()
        finally:
            with self._lock:
                self._now -= 1


@pytest.mark.parametrize(("concurrency", "expected"), [(3, 3), (8, 8), (1, 1)])
def test_no_more_parts_are_under_way_than_allowed(concurrency: int, expected: int) -> None:
    """As many parts as are allowed are sent at once, and not one more; the caller's own memory needs no budget."""
    store = _CountInFlight(memory_store(), expected)
    with Uploader(store, config(part=16, concurrency=concurrency, inflight=1)) as uploader:
        send(uploader, "k", [Span.of(random_bytes(16 * 20))])
        uploader.finish()
        assert uploader.budget.peak_bytes == 0
    assert store.most == expected


@pytest.mark.parametrize(("inflight", "expected"), [(1 << 20, 8), (64, 4), (40, 2), (16, 1), (1, 1)])
def test_late_bytes_are_made_only_when_there_is_memory_for_them(inflight: int, expected: int) -> None:
    """No more bytes are made for parts under way than the budget has room for; one part passes whatever its size."""
    store = _CountInFlight(memory_store(), expected)
    pieces = [random_bytes(8, number) for number in range(40)]
    with Uploader(store, config(part=16, concurrency=8, inflight=inflight)) as uploader:
        send(uploader, "k", [Span(8, lambda piece=piece: memoryview(piece), room=Room(8)) for piece in pieces])
        uploader.finish()
        assert uploader.budget.held_bytes == 0
        assert uploader.budget.peak_bytes <= max(inflight, 16)
    assert store.most == expected
    assert content(store, "k") == b"".join(pieces)


def test_room_of_a_block_in_two_parts_is_given_back_when_both_are_sent() -> None:
    """A block that parts share is made whole, so it counts whole until its last byte is sent."""
    store = memory_store()
    blocks = [random_bytes(24, number) for number in range(5)]
    with Uploader(store, config(part=16, concurrency=2, inflight=64)) as uploader:
        send(uploader, "k", [Span(24, lambda block=block: memoryview(block), room=Room(24)) for block in blocks])
        uploader.finish()
        assert uploader.budget.held_bytes == 0
        assert 24 <= uploader.budget.peak_bytes <= 64
    assert content(store, "k") == b"".join(blocks)


def test_short_pieces_are_joined_in_order_and_counted() -> None:
    """Copies stand where they were appended, between spans too; they are in the budget until they are sent."""
    store = memory_store()
    pieces = [random_bytes(100 * 1024, number) for number in range(30)]
    with Uploader(store, config(part=1 << 20, inflight=4 << 20)) as uploader:
        upload = uploader.begin("k", expected_bytes=4 << 20)
        upload.append_copy([pieces[0], memoryview(pieces[1])])
        upload.append(Span.of(pieces[2]))
        for piece in pieces[3:]:
            upload.append_copy([piece])
        assert upload.size_bytes == sum(map(len, pieces))
        upload.end()
        uploader.finish()
        assert uploader.budget.held_bytes == 0
        assert 1 << 20 <= uploader.budget.peak_bytes <= 4 << 20
    assert content(store, "k") == b"".join(pieces)


def test_the_appending_thread_waits_when_enough_is_under_way() -> None:
    """Parts under way and parts that wait are bounded: a fast producer does not fill the memory."""
    gate = threading.Event()

    class Gated(StoreWrapper):
        def around(self, request: Request, run):
            if request.verb == "put_part":
                assert gate.wait(20)
            return run()

    made: list[int] = []

    def load(number: int) -> memoryview:
        return memoryview(bytes([number]) * 16)

    def produce(uploader: Uploader) -> None:
        upload = uploader.begin("k", expected_bytes=16 * 30)
        for number in range(30):
            made.append(number)
            upload.append(Span(16, lambda number=number: load(number)))
        upload.end()

    store = memory_store()
    with Uploader(Gated(store), config(part=16, concurrency=2)) as uploader:
        producer = threading.Thread(target=produce, args=(uploader,), daemon=True)
        producer.start()
        producer.join(0.3)
        # Two are under way, two wait, one is refused by the full queue and one was made after it was full.
        assert len(made) <= 6
        gate.set()
        producer.join(20)
        uploader.finish()
    assert content(store, "k") == b"".join(bytes([number]) * 16 for number in range(30))


def test_memory_is_given_back_part_by_part() -> None:
    """``on_sent`` is called for every byte exactly once, in pieces where a span was cut."""
    given_back: list[int] = []
    with Uploader(memory_store(), config(part=16)) as uploader:
        send(uploader, "k", [Span.of(random_bytes(50), on_sent=given_back.append), Span.of(b"unwatched")])
        uploader.finish()
    assert sorted(given_back) == [2, 16, 16, 16]


def test_many_objects_go_at_once() -> None:
    """Objects do not wait for one another."""
    store = memory_store()
    data = {f"o/{number}": random_bytes(number * 7, number) for number in range(20)}
    with Uploader(store, config(part=16)) as uploader:
        for key, piece in data.items():
            send(uploader, key, [Span.of(piece)])
        uploader.finish()
    assert {key: content(store, key) for key in keys(store)} == data


def test_progress_adds_up_to_the_bytes() -> None:
    """Every payload byte is told once, when the store has it."""
    events: list[TransferEvent] = []
    with Uploader(memory_store(), config(part=16), hook=events.append, phase="copy") as uploader:
        send(uploader, "a", [Span.of(random_bytes(50))])
        send(uploader, "b", [Span.of(random_bytes(5))])
        uploader.finish()
    progress = [event for event in events if isinstance(event, Progressed)]
    assert sum(event.size_bytes for event in progress) == 55
    assert {event.phase for event in progress} == {"copy"}


def test_a_late_trailer_holds_the_checksum_of_the_bytes_before_it() -> None:
    """A span that is made from the checksums of earlier ones may be cut by a part's end."""
    store = memory_store()
    data = random_bytes(47)
    blocks = [Span.of(data[:20]), Span.of(data[20:])]
    trailer = Span(4, lambda: memoryview(crc32_of(blocks).to_bytes(4, "little")))
    with Uploader(store, config(part=16)) as uploader:
        send(uploader, "k", [*blocks, trailer])
        uploader.finish()
    assert content(store, "k") == data + zlib.crc32(data).to_bytes(4, "little")


def test_a_span_of_thousands_of_parts() -> None:
    """One long span is sent whatever the number of its parts."""
    store = memory_store()
    data = random_bytes(3000)
    span = Span.of(data)
    with Uploader(store, config(part=1)) as uploader:
        send(uploader, "k", [span])
        uploader.finish()
    assert content(store, "k") == data
    assert span.crc32() == zlib.crc32(data)


def test_an_object_that_outgrows_its_parts_is_refused() -> None:
    """More bytes than were announced are an error when the parts run out, and leave nothing."""
    store = memory_store(max_parts=3)
    with pytest.raises(ConfigError, match="more than 3 parts"), Uploader(store, config(part=16)) as uploader:
        upload = uploader.begin("k", expected_bytes=48)
        upload.append(Span.of(random_bytes(49)))
        upload.end()
        uploader.finish()
    assert keys(store) == set()
    assert list(store.list_multiparts()) == []
