"""Requests that bring their bytes too slowly are broken off and tried again."""

from __future__ import annotations

import threading

import pytest

from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import RetriesExhaustedError, TransientError
from dcp_cloud.stores.cancel import CancelScope, current_scope
from dcp_cloud.transfer import retry
from dcp_cloud.transfer.deadline import Deadlines, allowed_s
from dcp_cloud.transfer.pace import Pace
from dcp_cloud.transfer.retry import Retrier


def until_broken_off() -> None:
    scope, broken = current_scope(), threading.Event()
    assert scope is not None
    scope.add(broken.set)
    assert broken.wait(20), "nobody broke the slow request off"
    raise TransientError("broken off")


def test_longer_requests_may_take_longer() -> None:
    """The time allowed grows with the bytes."""
    assert allowed_s(0) < allowed_s(2**20) < allowed_s(2**30)


def test_requests_that_share_a_slow_link_get_time_for_all_of_them() -> None:
    """32 parts of 16 MiB at once on a link of 2 MiB/s, 256 s for each: none is broken off, all would be sent again."""
    nbytes, rate = 16 * 2**20, 2 * 2**20
    assert allowed_s(nbytes, 32) > 32 * nbytes / rate


def test_a_deadline_counts_those_that_share_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has company when its time is over gets time for all; one that is too slow even so makes them fewer."""
    asked = []

    def allowed(_nbytes: int, in_flight: int) -> float:
        asked.append(in_flight)
        return 0.05 * in_flight

    monkeypatch.setattr(retry, "allowed_s", allowed)
    pace = Pace(8)
    with Deadlines() as deadlines:
        retrier = Retrier(config=RetryConfig(base_delay_s=0.0, max_attempts=1), deadlines=deadlines, pace=pace)

        def request() -> None:
            pace.acquire()  # somebody comes in the meantime
            until_broken_off()

        with pytest.raises(RetriesExhaustedError, match="max_concurrency"):
            retrier.call(request, verb="put_part", key="k", size_bytes=10)
    assert asked[0] == 1
    assert asked[-1] == 2
    assert pace.bound == 4


def test_the_earliest_deadline_comes_first_and_the_end_cancels_nothing() -> None:
    """Scopes are cancelled in the order of their deadlines; those that are not due survive the end."""
    soon, later, never = CancelScope(), CancelScope(), CancelScope()
    with Deadlines() as deadlines:
        deadlines.call_in(3600, never.cancel)
        deadlines.call_in(0.05, later.cancel)
        deadlines.call_in(0.0, soon.cancel)
        assert soon.event.wait(10)
        assert later.event.wait(10)
    assert not never.is_cancelled


def test_a_request_past_its_deadline_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A try that hangs is broken off and counts as a failure that may pass; the next try succeeds."""
    monkeypatch.setattr(retry, "allowed_s", lambda *_: 0.05)
    tries = []

    def request() -> str:
        tries.append(1)
        if len(tries) == 1:
            until_broken_off()
        return "done"

    with Deadlines() as deadlines:
        retrier = Retrier(config=RetryConfig(base_delay_s=0.0), deadlines=deadlines)
        assert retrier.call(request, verb="get_range", key="k", size_bytes=10) == "done"
    assert len(tries) == 2


def test_the_error_says_that_it_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """When every try is too slow, the final error says so."""
    monkeypatch.setattr(retry, "allowed_s", lambda *_: 0.05)
    with Deadlines() as deadlines:
        retrier = Retrier(config=RetryConfig(base_delay_s=0.0, max_attempts=2), deadlines=deadlines)
        with pytest.raises(RetriesExhaustedError, match="was broken off"):
            retrier.call(until_broken_off, verb="get_range", key="k", size_bytes=10)
