"""What a load does when something goes wrong: it ends, soon, with the first thing that did."""

from __future__ import annotations

import signal
import threading
import zlib
from dataclasses import replace

import pytest

from dcp_cloud.errors import (
    CorruptCheckpointError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PreconditionError,
    RetriesExhaustedError,
)
from dcp_cloud.testing.wrappers import Fault, FaultyStore, RecordingStore, SimulatedCrash
from dcp_cloud.transfer.download import Check, Downloader, Target
from tests.unit.transfer.test_download import Kept, stored
from tests.unit.transfer.tools import AT_ONCE, config, transfer_threads


@pytest.fixture(autouse=True)
def _short_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small loads be cut into many requests, which the bound of a MiB would join into one."""
    monkeypatch.setattr("dcp_cloud.transfer.download._MIN_FETCH_BYTES", 1)


def many_targets(count: int = 20, *, nbytes: int = 40) -> list[Target]:
    return [Target(key="a", start=number * nbytes, nbytes=nbytes) for number in range(count)]


@pytest.mark.parametrize("nth", [1, 7, 50])
@pytest.mark.parametrize("inflight", [1 << 20, 45])
def test_a_read_that_fails_for_good_fails_the_load(nth: int, inflight: int) -> None:
    """Whichever read it is, and whoever waits for memory meanwhile: the load ends with its error."""
    store, _ = stored(800)
    faulty = FaultyStore(store, [Fault("refuse", verb="get_range", nth=nth)])
    with pytest.raises(PermissionDeniedError, match="get_range failed on purpose"):
        Downloader(faulty, config(part=16, inflight=inflight)).run(many_targets())
    assert transfer_threads() == []


def test_what_passes_is_not_noticed() -> None:
    """Lost and broken-off answers are asked for again, into the same memory."""
    store, data = stored(800)
    faults = [
        Fault("fail", verb="get_range", nth=2, times=3),
        Fault("truncate", nth=8, times=2),
        Fault("throttle", verb="get_range", nth=20, retry_after_s=0),
        Fault("fail", verb="get_range", when="after", nth=22),
    ]
    faulty = FaultyStore(store, faults)
    kept = Kept()
    targets = [kept.target(number, "a", number * 40, 40, direct=number % 2 == 0) for number in range(20)]
    patient = replace(AT_ONCE, max_attempts=8)  # one request may meet all seven
    Downloader(faulty, config(part=16, concurrency=2, retry=patient)).run(targets)
    assert len(faulty.strikes) == 7
    assert kept.got == {number: data["a"][number * 40 : number * 40 + 40] for number in range(20)}


def test_what_does_not_pass_is_told_as_exhausted() -> None:
    """An object that cannot be read is an error with its key."""
    store, _ = stored(100)
    with pytest.raises(RetriesExhaustedError, match="get_range failed 4 times") as caught:
        Downloader(FaultyStore(store, [Fault("truncate", times=None)]), config()).run(many_targets(2))
    assert caught.value.key == "a"


def test_an_object_shorter_than_the_range_is_an_error() -> None:
    """Missing bytes are never left as they were."""
    store, _ = stored(99)
    with pytest.raises(OutOfRangeError, match="ends before"):
        Downloader(store, config(part=1000)).run([Target(key="a", start=50, nbytes=50)])


def test_a_missing_object_is_an_error() -> None:
    """So is an object that is not there."""
    store, _ = stored(99)
    with pytest.raises(NotFoundError):
        Downloader(store, config()).run([*many_targets(2), Target(key="gone", start=0, nbytes=1)])


def test_another_version_of_the_object_is_not_read() -> None:
    """With ``if_match`` all bytes come from one version."""
    store, data = stored(99)
    etag = store.head("a").etag
    memory = bytearray(99)
    target = Target(key="a", start=0, nbytes=99, memory=memoryview(memory))
    Downloader(store, config()).run([target], if_match=etag)
    assert memory == data["a"]
    store.put("a", [memoryview(bytes(99))])
    with pytest.raises(PreconditionError):
        Downloader(store, config()).run([target], if_match=etag)


def checked(data: bytes, start: int = 10, nbytes: int = 50, **changes: object) -> Target:
    checks = tuple(
        Check(low, low + 10, zlib.crc32(data[start + low : start + low + 10])) for low in range(0, nbytes, 10)
    )
    values = {"key": "a", "start": start, "nbytes": nbytes, "checks": checks, "label": "model.w"}
    return Target(**(values | changes))  # type: ignore[arg-type]


def whole_reads(store: RecordingStore) -> int:
    """Count the reads of a whole checked target; the first ones, in parallel, bring its pieces."""
    return sum((call.start, call.size_bytes) == (10, 50) for call in store.calls)


@pytest.mark.parametrize("direct", [True, False])
def test_bytes_that_changed_on_the_way_are_read_once_more(direct: bool) -> None:
    """A wrong checksum may be the network's fault: a second read decides."""
    store, data = stored(100)
    faulty = RecordingStore(FaultyStore(store, [Fault("flip_bit", verb="get_range")]))
    memory = memoryview(bytearray(50)) if direct else None
    got: list[bytes] = []
    target = checked(data["a"], memory=memory, done=lambda memory: got.append(bytes(memory)))
    Downloader(faulty, config(part=30)).run([target])
    assert got == [data["a"][10:60]]
    assert whole_reads(faulty) == 1


def test_stored_bytes_that_are_wrong_are_a_corrupt_checkpoint() -> None:
    """A second wrong read names the tensor, the object and the bytes; nothing is handed back or converted."""
    store, data = stored(100)
    wrong = bytearray(data["a"])
    wrong[35] ^= 1
    store.put("a", [memoryview(wrong)])
    recording = RecordingStore(store)
    seen: list[memoryview] = []
    target = checked(data["a"], convert=seen.append, done=seen.append)
    with pytest.raises(CorruptCheckpointError, match=r"model\.w") as caught:
        Downloader(recording, config(part=30)).run([target])
    assert caught.value.key == "a"
    assert "bytes 30 to 40" in str(caught.value)
    assert whole_reads(recording) == 1
    assert seen == []


def test_a_check_covers_exactly_its_bytes() -> None:
    """Bytes between checks are not judged; the last byte of a check is."""
    store, data = stored(100)
    wrong = bytearray(data["a"])
    wrong[20] ^= 1
    store.put("a", [memoryview(wrong)])
    crc = zlib.crc32(data["a"][10:20])
    Downloader(store, config()).run([Target(key="a", start=10, nbytes=50, checks=(Check(0, 10, crc),))])
    with pytest.raises(CorruptCheckpointError):
        Downloader(store, config()).run(
            [Target(key="a", start=10, nbytes=50, checks=(Check(0, 11, zlib.crc32(data["a"][10:21])),))]
        )


class _WrongError(Exception):
    pass


def fail(_memory: memoryview) -> None:
    raise _WrongError("in a callback")


@pytest.mark.parametrize("callback", ["convert", "done"])
@pytest.mark.parametrize("inflight", [1 << 20, 45])
@pytest.mark.parametrize("place", [0, 10, 19])
def test_an_error_of_a_callback_is_raised_as_it_is(callback: str, inflight: int, place: int) -> None:
    """What the planner's or the converter's code raises reaches the caller, whoever waits for memory meanwhile."""
    store, _ = stored(800)
    targets = many_targets()
    setattr(targets[place], callback, fail)
    with pytest.raises(_WrongError, match="in a callback"):
        Downloader(store, config(part=16, inflight=inflight)).run(targets)
    assert transfer_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_callback_that_ends_the_process_ends_the_load(error: type[BaseException]) -> None:
    """No thread is left behind that would write into memory which the caller takes back."""
    store, _ = stored(800)
    targets = many_targets()

    def end(_memory: memoryview) -> None:
        raise error

    targets[3].done = end
    with pytest.raises(error):
        Downloader(store, config(part=16, inflight=45)).run(targets)
    assert transfer_threads() == []


def test_a_crash_of_a_worker_reaches_the_caller() -> None:
    """Whatever a worker raises, the caller hears of it."""
    store, _ = stored(800)
    with pytest.raises(SimulatedCrash):
        Downloader(FaultyStore(store, [Fault("crash", verb="get_range", nth=9)]), config(part=16)).run(many_targets())


@pytest.mark.parametrize("nth", range(1, 40, 3))
def test_ctrl_c_at_any_moment_of_a_load_leaves_no_thread(nth: int) -> None:
    """A signal that hits the waiting caller ends the load, also while the feeder waits for memory."""
    store, _ = stored(800)
    main = threading.main_thread().ident
    assert main is not None
    once = threading.Lock()  # a second Ctrl-C would stop waiting for the threads

    class CtrlC(RecordingStore):
        def get_range(self, key, start, buffers, *, if_match=None):
            if self.count("get_range") >= nth and once.acquire(blocking=False):
                signal.pthread_kill(main, signal.SIGINT)
            super().get_range(key, start, buffers, if_match=if_match)

    with pytest.raises(KeyboardInterrupt):
        Downloader(CtrlC(store), config(part=16, inflight=200)).run(many_targets())
        signal.pause()  # the signal was sent before the load ended
    assert transfer_threads() == []
