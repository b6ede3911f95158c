from __future__ import annotations

import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers import RecordingStore
from dcp_cloud.transfer.download import Check, Downloader, Target
from dcp_cloud.transfer.events import Progressed, TransferEvent
from tests.unit.transfer.tools import config, memory_store, random_bytes


class Kept:
    """Targets whose bytes are kept when they are handed back."""

    def __init__(self) -> None:
        self.got: dict[int, bytes] = {}
        self.threads: set[str] = set()

    def keep(self, number: int, memory: memoryview) -> None:
        assert number not in self.got, "handed back once"
        self.got[number] = bytes(memory)
        self.threads.add(threading.current_thread().name)

    def target(self, number: int, key: str, start: int, nbytes: int, *, direct: bool = False) -> Target:
        memory = memoryview(bytearray(nbytes)) if direct else None
        return Target(key=key, start=start, nbytes=nbytes, memory=memory, done=lambda memory: self.keep(number, memory))


def stored(size: int = 1000, *names: str) -> tuple[MemoryStore, dict[str, bytes]]:
    store = memory_store()
    data = {name: random_bytes(size, seed) for seed, name in enumerate(names or ("a",))}
    for name, piece in data.items():
        store.put(name, [memoryview(piece)])
    return store, data


@pytest.fixture
def _short_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small loads be cut into many requests, which the bound of a MiB would join into one."""
    monkeypatch.setattr("dcp_cloud.transfer.download._MIN_FETCH_BYTES", 1)


places = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 199), st.integers(1, 90), st.booleans()), min_size=1, max_size=12
)


@pytest.mark.usefixtures("_short_fetches")
@given(places, st.integers(1, 50), st.integers(1, 5), st.integers(0, 30), st.integers(1, 300))
def test_any_targets_get_their_bytes(
    wanted: list[tuple[str, int, int, bool]], part: int, concurrency: int, gap: int, inflight: int
) -> None:
    """Direct or temporary, overlapping or apart, whatever the cuts and the memory: each target has its own bytes."""
    store, data = stored(200, "a", "b")
    kept = Kept()
    targets = [
        kept.target(number, key, start, min(length, 200 - start), direct=direct)
        for number, (key, start, length, direct) in enumerate(wanted)
    ]
    settings = config(part=part, concurrency=concurrency, gap=gap, inflight=inflight)
    Downloader(store, settings).run(targets)
    assert kept.got == {
        number: data[target.key][target.start : target.start + target.nbytes] for number, target in enumerate(targets)
    }
    assert kept.threads == {threading.current_thread().name}
    for target in targets:
        if target.memory is not None:
            assert target.memory == data[target.key][target.start : target.start + target.nbytes]


def test_nothing_wanted_is_nothing_asked() -> None:
    """A load of no bytes makes no request."""
    store = RecordingStore(memory_store())
    Downloader(store, config()).run([])
    assert store.calls == ()


def test_bytes_that_two_targets_share_are_fetched_once() -> None:
    """Overlapping targets get copies of one read."""
    store, data = stored(100)
    recording = RecordingStore(store)
    kept = Kept()
    same = [kept.target(number, "a", 10, 50, direct=number % 2 == 0) for number in range(4)]
    inside = [kept.target(4, "a", 20, 5), kept.target(5, "a", 0, 100)]
    Downloader(recording, config(part=1000)).run([*same, *inside])
    assert sum(call.size_bytes for call in recording.calls) == 100
    assert kept.got == {
        **dict.fromkeys(range(4), data["a"][10:60]),
        4: data["a"][20:25],
        5: data["a"],
    }


@pytest.mark.parametrize(("gap", "requests", "fetched"), [(10, 1, 50), (9, 2, 40)])
def test_gaps_are_carried_up_to_the_bound(gap: int, requests: int, fetched: int) -> None:
    """A gap of at most the bound is read along and thrown away; a longer one costs a request."""
    store, data = stored(100)
    recording = RecordingStore(store)
    kept = Kept()
    targets = [kept.target(0, "a", 5, 20, direct=True), kept.target(1, "a", 35, 20)]
    Downloader(recording, config(part=1000, gap=gap)).run(targets)
    assert (recording.count("get_range"), sum(call.size_bytes for call in recording.calls)) == (requests, fetched)
    assert kept.got == {0: data["a"][5:25], 1: data["a"][35:55]}


def test_ten_thousand_small_tensors_are_a_handful_of_requests() -> None:
    """Requests are made by bytes, not by item."""
    size, header = 4096, 704
    data = random_bytes(10_000 * (size + header))
    store = memory_store()
    store.put("a", [memoryview(data)])
    recording = RecordingStore(store)
    handed_back: list[bool] = []

    def target(number: int) -> Target:
        start = number * (size + header) + header
        expected = zlib.crc32(data[start : start + size])
        return Target(
            key="a",
            start=start,
            nbytes=size,
            checks=(Check(0, size, expected),),
            done=lambda memory: handed_back.append(zlib.crc32(memory) == expected),
        )

    Downloader(recording, TransferConfig()).run([target(number) for number in range(10_000)])
    assert handed_back == [True] * 10_000
    assert recording.count("get_range") <= 20
    assert sum(call.size_bytes for call in recording.calls) <= len(data)


def test_a_long_target_is_read_in_parallel_by_requests_of_bounded_length() -> None:
    """One tensor is not one request: every connection gets its share."""
    store, data = stored(16 * MIB)
    recording = RecordingStore(store)
    kept = Kept()
    Downloader(recording, config(part=6 * MIB, concurrency=4, inflight=64 * MIB)).run(
        [kept.target(0, "a", 0, 16 * MIB)]
    )
    assert kept.got[0] == data["a"]
    assert [call.size_bytes for call in recording.calls] == [4 * MIB] * 4


class _Peak:
    """Watches how many bytes of temporaries are alive at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def change(self, nbytes: int) -> None:
        with self._lock:
            self.now += nbytes
            self.most = max(self.most, self.now)


@pytest.mark.usefixtures("_short_fetches")
@pytest.mark.parametrize(
    ("part", "inflight", "most"),
    [(50, 100, 100), (50, 50, 50), (50, 10, 50), (50, 1, 50), (50, 1000, 500), (16, 50, 100), (16, 1, 100)],
)
def test_temporaries_stay_within_the_budget(part: int, inflight: int, most: int) -> None:
    """At most the budget is held by temporaries, or what one request brings to one more target; nothing blocks."""
    store, data = stored(500)
    peak = _Peak()
    got: dict[int, bytes] = {}

    def target(number: int) -> Target:
        def done(memory: memoryview) -> None:
            got[number] = bytes(memory)
            peak.change(-50)

        return Target(key="a", start=number * 50, nbytes=50, convert=lambda _memory: peak.change(50), done=done)

    Downloader(store, config(part=part, inflight=inflight, gap=0)).run([target(number) for number in range(10)])
    assert got == {number: data["a"][number * 50 : number * 50 + 50] for number in range(10)}
    assert 0 < peak.most <= most


@pytest.mark.usefixtures("_short_fetches")
def test_a_budget_smaller_than_overlapping_targets_does_not_block() -> None:
    """Targets that only the same reads can complete pass together, however little memory there is."""
    store, data = stored(500)
    kept = Kept()
    targets = [kept.target(number, "a", number * 3, 400) for number in range(20)]
    Downloader(store, config(part=7, inflight=1)).run(targets)
    assert kept.got == {number: data["a"][number * 3 : number * 3 + 400] for number in range(20)}


def test_converting_is_done_on_threads_and_before_handing_back() -> None:
    """``convert`` has the whole memory, off the calling thread; ``done`` sees what it made of it."""
    store, data = stored(100)
    caller = threading.current_thread().name
    converted_by: list[str] = []
    got: list[bytes] = []

    def convert(memory: memoryview) -> None:
        assert memory == data["a"][:10]
        memory[:] = bytes(reversed(memory))
        converted_by.append(threading.current_thread().name)

    Downloader(store, config()).run(
        [Target(key="a", start=0, nbytes=10, convert=convert, done=lambda memory: got.append(bytes(memory)))]
    )
    assert got == [data["a"][:10][::-1]]
    assert caller not in converted_by


def test_progress_adds_up_to_the_bytes_and_items() -> None:
    """Every target is told once, when it is done."""
    store, _ = stored(100)
    events: list[TransferEvent] = []
    targets = [Target(key="a", start=number * 10, nbytes=10, items=number) for number in range(5)]
    Downloader(store, config(), hook=events.append, phase="verify").run(targets)
    progress = [event for event in events if isinstance(event, Progressed)]
    assert sorted((event.size_bytes, event.items) for event in progress) == [(10, number) for number in range(5)]
    assert {event.phase for event in progress} == {"verify"}


def test_reads_run_at_once_and_finish_in_any_order() -> None:
    """A slow first read holds up nobody else."""
    store, data = stored(400)
    others_done = threading.Semaphore(0)

    class SlowStart(RecordingStore):
        def get_range(self, key, start, buffers, *, if_match=None):
            if start == 0:
                for _ in range(3):
                    assert others_done.acquire(timeout=20)
            super().get_range(key, start, buffers, if_match=if_match)
            others_done.release()

    slow: ObjectStore = SlowStart(store)
    kept = Kept()
    Downloader(slow, config(part=1000, gap=0)).run([kept.target(number, "a", number * 50, 10) for number in range(4)])
    assert kept.got == {number: data["a"][number * 50 : number * 50 + 10] for number in range(4)}
    assert next(iter(kept.got)) != 0


@pytest.mark.parametrize(("nbytes", "room"), [(0, None), (-1, None), (5, 4), (5, 6), (0, 0)])
def test_memory_of_the_wrong_length_is_refused(nbytes: int, room: int | None) -> None:
    """A target whose memory is shorter than its bytes would shift what is read after it."""
    memory = None if room is None else memoryview(bytearray(room))
    with pytest.raises(ConfigError):
        Target(key="a", start=0, nbytes=nbytes, memory=memory)
