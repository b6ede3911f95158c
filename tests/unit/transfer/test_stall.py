"""A transfer that makes no progress says what it waits for."""

from __future__ import annotations

import logging
import threading

import pytest

from dcp_cloud.config import TransferConfig
from dcp_cloud.testing.wrappers.base import Request, StoreWrapper
from dcp_cloud.transfer.budget import PROCESS_BUDGET
from dcp_cloud.transfer.events import Stalled, TransferEvent
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.stall import StallWatch
from dcp_cloud.transfer.upload import Uploader
from tests.unit.transfer.tools import memory_store


class _Calls:
    """Deadlines of a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.asked: list[float] = []
        self._action = None

    def call_in(self, delay_s, action) -> None:
        self.asked.append(delay_s)
        self._action = action

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self._action()


def new_watch(calls: _Calls, events: list[TransferEvent], after_s: float = 60) -> StallWatch:
    watch = StallWatch(
        phase="load", after_s=after_s, hook=events.append, waits_for_memory=lambda: False, clock=lambda: calls.now_s
    )
    watch.watch(calls)  # type: ignore[arg-type]  # its one method that is used
    return watch


def test_it_tells_of_the_oldest_request(caplog: pytest.LogCaptureFixture) -> None:
    """When nothing has succeeded for the set time, the event and the log name the oldest request; again and again."""
    calls, events = _Calls(), []
    watch = new_watch(calls, events)
    with watch.request("get_range", "old"):
        calls.now_s += 10
        with watch.request("get_range", "new"), caplog.at_level(logging.WARNING):
            calls.later(50)
        calls.later(59)
        assert len(events) == 1, "a request has succeeded 59 s ago"
        calls.later(1)
    assert events == [
        Stalled(phase="load", idle_s=60, requests=2, verb="get_range", key="old", pending_s=60),
        Stalled(phase="load", idle_s=60, requests=1, verb="get_range", key="old", pending_s=120),
    ]
    assert "no progress for 60 s: 2 requests are under way, the oldest, get_range old, for 60 s" in caplog.text


def test_it_looks_no_more_often_than_a_warning_can_be_due() -> None:
    """A transfer that goes well is looked at once per set time, counted from its last success."""
    calls, events = _Calls(), []
    watch = new_watch(calls, events)
    calls.now_s += 45
    with watch.request("put", "k"):
        pass
    calls.later(15)
    assert calls.asked == [60, 45]
    assert events == []


def test_zero_never_warns() -> None:
    """Whoever sets the time to 0 hears nothing."""
    calls, events = _Calls(), []
    new_watch(calls, events, after_s=0)
    assert calls.asked == []


def test_a_save_that_hangs_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A real transfer tells of a part that hangs, and of memory that another transfer holds."""
    told, told_of_memory = threading.Event(), threading.Event()
    events: list[TransferEvent] = []

    class Hangs(StoreWrapper):
        def around(self, request: Request, run):
            if request.verb == "put":
                assert told.wait(20)
            return run()

    def hook(event: TransferEvent) -> None:
        events.append(event)
        if isinstance(event, Stalled) and event.requests:
            told.set()
        if isinstance(event, Stalled) and event.waits_for_memory:
            told_of_memory.set()

    settings = TransferConfig(stall_warning_s=0.01, max_inflight_bytes=10)
    with Uploader(Hangs(memory_store()), settings, hook=hook) as uploader:
        upload = uploader.begin("k", expected_bytes=1)
        upload.append(Span.of(b"x"))
        upload.end()
        uploader.finish()
    assert [event for event in events if isinstance(event, Stalled) and (event.verb, event.key) == ("put", "k")]
    assert "the save has made no progress" in caplog.text

    other = PROCESS_BUDGET.open(10)
    other.acquire(10)
    with Uploader(memory_store(), settings, hook=hook) as uploader:
        freeing = threading.Thread(target=lambda: (told_of_memory.wait(20), other.close()))
        freeing.start()
        uploader.begin("k", expected_bytes=5)
        uploader.budget.acquire(5)
        freeing.join()
    assert next(event.requests for event in events if isinstance(event, Stalled) and event.waits_for_memory) == 0
