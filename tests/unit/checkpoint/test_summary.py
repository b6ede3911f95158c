"""What a summary adds up, and that events go on to the user's hook."""

from __future__ import annotations

import pickle
import threading

import pytest

from dcp_cloud.checkpoint.summary import SummaryCollector, TransferSummary
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, RequestDone, TransferEvent


def request(duration_s: float, *, will_retry: bool = False) -> RequestDone:
    return RequestDone(verb="put", key="k", size_bytes=1, duration_s=duration_s, will_retry=will_retry)


def test_events_are_added_up_and_passed_on() -> None:
    """Bytes, items, requests, retries, the slowest request and the time are in the record; the hook hears all."""
    heard: list[TransferEvent] = []
    times = iter([100.0, 104.0])
    collector = SummaryCollector("save", "s3://b/p", heard.append, clock=lambda: next(times))
    events: list[TransferEvent] = [
        Planned(phase="save", size_bytes=50, items=3),
        request(0.5, will_retry=True),
        request(2.0),
        request(1.0),
        Progressed(phase="save", size_bytes=30),
        Progressed(phase="save", size_bytes=10, items=2),
    ]
    for event in events:
        collector(event)
    summary = collector.end(ValueError("x"))
    assert heard == [*events, PhaseDone(phase="save", duration_s=4.0, error="ValueError")]
    assert summary == TransferSummary(
        phase="save", uri="s3://b/p", size_bytes=40, items=3, duration_s=4.0, requests=3, retries=1, slowest_s=2.0
    )
    assert summary.bytes_per_s == 10
    assert pickle.loads(pickle.dumps(summary)) == summary


def test_a_summary_of_no_time_has_no_rate() -> None:
    """A clock that stood still gives no infinite rate."""
    assert TransferSummary(phase="load", uri="u", size_bytes=5).bytes_per_s == 0


def test_many_threads_lose_nothing() -> None:
    """Events come from worker threads at once."""
    collector = SummaryCollector("load", "u", lambda event: None)

    def tell() -> None:
        for _ in range(2000):
            collector(Progressed(phase="load", size_bytes=1))

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector.end().size_bytes == 16_000


def test_the_user_may_ask_for_more_while_told() -> None:
    """A hook may end the books itself: nothing is locked while it runs."""
    collector = SummaryCollector("load", "u", lambda event: seen.append(isinstance(event, PhaseDone)))
    seen: list[bool] = []
    collector(Progressed(phase="load", size_bytes=1))
    assert collector.end().size_bytes == pytest.approx(1)
    assert seen == [False, True]
