"""What an upload leaves behind when it fails: nothing. And what it says: the first thing that went wrong."""

from __future__ import annotations

import itertools
import logging
import signal
import threading

import pytest

from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import DcpCloudError, PermissionDeniedError, RetriesExhaustedError, TransientError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.cancel import current_scope
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers import Fault, FaultyStore, RecordingStore, SimulatedCrash
from dcp_cloud.testing.wrappers.base import StoreWrapper
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader
from tests.unit.transfer.test_upload import send
from tests.unit.transfer.tools import config, content, keys, memory_store, random_bytes, transfer_threads, wait_until


def upload_all(store: ObjectStore, sizes: tuple[int, ...] = (5, 100, 16, 0, 40), concurrency: int = 3) -> None:
    with Uploader(store, config(part=16, concurrency=concurrency)) as uploader:
        for number, size in enumerate(sizes):
            send(uploader, f"o/{number}", [Span.of(random_bytes(size, number))])
        uploader.finish()


def assert_untouched(store: MemoryStore) -> None:
    assert keys(store) == set()
    assert list(store.list_multiparts()) == []
    assert transfer_threads() == []


@pytest.mark.parametrize("verb", ["put", "create_multipart", "put_part", "complete"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
def test_any_failing_request_fails_the_whole_and_leaves_nothing(verb: str, when: str, nth: int) -> None:
    """Whichever request is refused, before or after its effect: the error is raised and no object or upload is left."""
    store = memory_store()
    fault = Fault("refuse", verb=verb, nth=nth, when=when)  # type: ignore[arg-type]
    with pytest.raises(PermissionDeniedError):
        upload_all(FaultyStore(store, [fault]))
    if (verb, when) == ("create_multipart", "after"):
        # Nobody knows the name of an upload whose creation was answered with an error; a sweep finds it.
        for orphan in store.list_multiparts():
            orphan.abort()
    assert_untouched(store)


@pytest.mark.parametrize("index", range(7))
def test_any_failing_part_is_the_whole_failing(index: int) -> None:
    """First, middle or last: one part that fails for good is an upload that failed."""
    store = memory_store()
    with pytest.raises(PermissionDeniedError, match="put_part failed on purpose"):
        upload_all(FaultyStore(store, [Fault("refuse", verb="put_part", nth=index + 1)]), sizes=(100,))
    assert_untouched(store)


def test_what_does_not_pass_is_told_as_exhausted() -> None:
    """Transient errors that go on end in an error that says how often it was tried."""
    store = memory_store()
    with pytest.raises(RetriesExhaustedError, match="put_part failed 4 times"):
        upload_all(FaultyStore(store, [Fault("fail", verb="put_part", times=None)]))
    assert_untouched(store)


def test_what_passes_is_not_noticed() -> None:
    """Failures that pass change nothing but the time."""
    store = memory_store()
    faults = [
        Fault("fail", verb="put*", times=3),
        Fault("fail", verb="put_part", when="after", nth=4),
        Fault("throttle", verb="create_multipart", retry_after_s=0),
        Fault("fail", verb="complete", when="after"),
    ]
    faulty = FaultyStore(store, faults)
    upload_all(faulty, concurrency=1)
    assert len(faulty.strikes) == 6
    assert {key: content(store, key) for key in keys(store)} == {
        f"o/{number}": random_bytes(size, number) for number, size in enumerate((5, 100, 16, 0, 40))
    }


def test_finished_objects_of_the_same_uploader_are_deleted() -> None:
    """An uploader stores all of its objects or none."""
    store = memory_store()
    faulty = RecordingStore(FaultyStore(store, [Fault("refuse", verb="put_part", key="last")]))
    with pytest.raises(PermissionDeniedError), Uploader(faulty, config(part=16)) as uploader:
        send(uploader, "small", [Span.of(b"x")])
        send(uploader, "long", [Span.of(random_bytes(100))])
        wait_until(lambda: keys(store) == {"small", "long"}, "both are stored")
        send(uploader, "last", [Span.of(random_bytes(100))])
        uploader.finish()
    assert_untouched(store)
    assert sorted(call.key for call in faulty.calls if call.verb == "delete") == ["last", "long", "small"]


def test_objects_of_others_are_left_alone() -> None:
    """Only what this uploader sent is deleted; an object that it had not begun to send is not."""
    store = memory_store()
    for key in ("other", "never-begun"):
        store.put(key, [memoryview(b"kept")])
    with pytest.raises(KeyError), Uploader(store, config()) as uploader:
        uploader.begin("never-begun", expected_bytes=3).append(Span.of(b"abc"))
        raise KeyError
    assert keys(store) == {"other", "never-begun"}
    assert content(store, "never-begun") == b"kept"


@pytest.mark.parametrize("verb", ["abort", "delete"])
def test_a_clean_up_that_fails_is_logged_and_hides_nothing(verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """The first error is raised; what could not be cleaned up is named for the sweep, and the rest is cleaned up."""
    store = memory_store()
    faults = [Fault("refuse", verb="put_part", key="bad", nth=2), Fault("refuse", verb=verb, key="bad", times=None)]
    caplog.set_level(logging.WARNING)
    with (
        pytest.raises(PermissionDeniedError, match="put_part"),
        Uploader(FaultyStore(store, faults), config(part=16)) as uploader,
    ):
        send(uploader, "good", [Span.of(random_bytes(50))])
        send(uploader, "bad", [Span.of(random_bytes(50))])
        uploader.finish()
    assert "could not clean up bad" in caplog.text
    assert keys(store) == set()
    assert len(list(store.list_multiparts())) == (1 if verb == "abort" else 0)


def test_a_failed_abort_does_not_keep_the_object_from_being_deleted() -> None:
    """A completion may have taken effect although it was answered with an error."""
    store = memory_store()
    faults = [Fault("refuse", verb="complete", when="after"), Fault("refuse", verb="abort", times=None)]
    with pytest.raises(PermissionDeniedError, match="complete"):
        upload_all(FaultyStore(store, faults), sizes=(100,))
    assert_untouched(store)


class _BuggyStore(StoreWrapper):
    """Raises what no store may raise."""

    def around(self, request, run):
        if request.verb in ("put_part", "abort"):
            raise RuntimeError(f"a bug in {request.verb}")
        return run()


def test_a_bug_in_a_store_hides_nothing() -> None:
    """Even errors that a store must not raise come out, the first one first, and cleaning up goes on."""
    store = memory_store()
    with pytest.raises(RuntimeError, match="a bug in put_part"):
        upload_all(_BuggyStore(store), sizes=(5, 100))
    assert keys(store) == set()


def test_cleaning_up_is_bounded_in_time_for_all_objects_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is gone for good does not hold up the error by the number of objects times the time-out."""
    monkeypatch.setattr("dcp_cloud.transfer.upload._CLEAN_UP_S", 0.2)
    retry = RetryConfig(max_attempts=1000, base_delay_s=0.05, max_delay_s=0.05)
    store = FaultyStore(memory_store(), [Fault("fail", verb="delete", times=None)])
    recording = RecordingStore(store)
    with pytest.raises(KeyError), Uploader(recording, config(retry=retry)) as uploader:
        for number in range(30):
            send(uploader, f"o/{number}", [Span.of(b"x")])
        uploader.finish()
        raise KeyError
    deletes = [call.key for call in recording.calls if call.verb == "delete"]
    assert set(deletes) == {f"o/{number}" for number in range(30)}, "each is tried at least once"
    assert len(deletes) < 30 * 4


def test_an_error_that_nobody_waited_for_is_raised() -> None:
    """A caller that forgets ``finish`` is not told of a success that was none."""
    store = memory_store()
    faulty = FaultyStore(store, [Fault("refuse", verb="put")])
    with pytest.raises(PermissionDeniedError), Uploader(faulty, config()) as uploader:
        send(uploader, "k", [Span.of(b"abc")])
    assert_untouched(store)


def test_a_producer_that_waits_for_memory_hears_of_a_failed_part() -> None:
    """What a failed part holds is never released: whoever waits for it must not wait for ever."""
    store = memory_store()
    faulty = FaultyStore(store, [Fault("refuse", verb="put_part")])
    with (
        pytest.raises(PermissionDeniedError, match="put_part failed on purpose"),
        Uploader(faulty, config(part=16, inflight=32)) as uploader,
    ):
        upload = uploader.begin("k", expected_bytes=160)
        for number in range(10):
            uploader.budget.acquire(16, own_bytes=upload.open_bytes)
            upload.append(Span.of(random_bytes(16, number), on_sent=uploader.budget.release))
        upload.end()
        uploader.finish()
    assert_untouched(store)


def test_staged_memory_is_bounded_and_all_of_it_is_released() -> None:
    """Copies never exceed the budget, whatever their lengths, and a whole upload gets through."""
    store = memory_store()
    pieces = [random_bytes(length, length) for length in (1, 30, 7, 64, 65, 200, 3, 16, 33, 90, 0, 12)]
    with Uploader(store, config(part=16, inflight=64)) as uploader:
        upload = uploader.begin("k", expected_bytes=sum(map(len, pieces)))
        for piece in pieces:
            uploader.budget.acquire(len(piece), own_bytes=upload.open_bytes)
            upload.append(Span.of(piece, on_sent=uploader.budget.release))
        upload.end()
        uploader.finish()
        assert uploader.budget.held_bytes == 0
        assert uploader.budget.peak_bytes <= 200 + 16, "one oversized piece beside what stands in the open part"
    assert content(store, "k") == b"".join(pieces)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_whatever_ends_the_producer_leaves_nothing(error: type[BaseException]) -> None:
    """A Ctrl-C in the middle of an object aborts it and deletes what was finished."""
    store = memory_store()
    with pytest.raises(error), Uploader(store, config(part=16)) as uploader:
        send(uploader, "done", [Span.of(random_bytes(50))])
        wait_until(lambda: "done" in keys(store), "the first object is stored")
        upload = uploader.begin("half", expected_bytes=1000)
        upload.append(Span.of(random_bytes(100)))
        raise error
    assert_untouched(store)


class _PressCtrlC(StoreWrapper):
    """Sends SIGINT to the main thread while the third part is under way."""

    def around(self, request, run):
        if request.verb == "put_part" and request.index == 2:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
        return run()


def test_ctrl_c_while_parts_are_under_way_leaves_nothing() -> None:
    """The signal reaches the caller, the threads end, and the store is as it was."""
    store = memory_store()
    with pytest.raises(KeyboardInterrupt):
        upload_all(_PressCtrlC(store), sizes=(16 * 50,))
    assert_untouched(store)


class _AnswersCross(StoreWrapper):
    """Stores the last part twice; the answer to the first request comes late, and to the second one never."""

    def __init__(self, store: ObjectStore, last: int) -> None:
        super().__init__(store)
        self._last = last
        self._turns = itertools.count()
        self._is_replaced = threading.Event()

    def around(self, request, run):
        if request.verb != "put_part" or request.index != self._last:
            return run()
        turn = next(self._turns)
        result = run()
        if turn == 0:
            assert self._is_replaced.wait(20)
        if turn == 1:
            scope, broken_off = current_scope(), threading.Event()
            assert scope is not None
            scope.add(broken_off.set)
            self._is_replaced.set()
            assert broken_off.wait(20)
            raise TransientError("broken off")
        return result


def test_a_part_that_was_sent_twice_has_the_token_of_what_is_stored() -> None:
    """A slow part is raced by a second request; whichever is stored last, the upload can be completed."""
    store = memory_store()
    recording = RecordingStore(_AnswersCross(store, last=19))
    data = random_bytes(16 * 20)
    with Uploader(recording, config(part=16)) as uploader:
        send(uploader, "k", [Span.of(data)])
        uploader.finish()
    assert content(store, "k") == data
    assert sum(call.index == 19 for call in recording.calls) == 3


def test_a_failing_loader_fails_the_upload() -> None:
    """Bytes that cannot be made are an upload that failed."""
    store = memory_store()

    def load() -> memoryview:
        raise DcpCloudError("the tensor is gone")

    with pytest.raises(DcpCloudError, match="the tensor is gone"), Uploader(store, config(part=16)) as uploader:
        send(uploader, "k", [Span.of(random_bytes(40)), Span(3, load)])
        uploader.finish()
    assert_untouched(store)


def test_bytes_shorter_than_announced_fail_the_upload() -> None:
    """A span that gives fewer bytes than it said would shift all that follows."""
    store = memory_store()
    with pytest.raises(AssertionError), Uploader(store, config(part=16)) as uploader:
        send(uploader, "k", [Span(10, lambda: memoryview(bytes(9))), Span.of(random_bytes(40))])
        uploader.finish()
    assert_untouched(store)


def test_after_a_crash_nothing_is_visible_and_the_parts_are_there_to_sweep() -> None:
    """A process that dies in the middle shows no object; only its unfinished upload remains."""
    store = memory_store()
    crashing = FaultyStore(store, [Fault("crash", verb="put_part", nth=3)])
    with pytest.raises(SimulatedCrash):
        upload_all(crashing, sizes=(100,))
    assert keys(store) == set()
    (orphan,) = store.list_multiparts()
    orphan.abort()
    assert_untouched(store)
