"""The bound on requests in flight: it rises while that pays, and falls when the provider asks for it."""

from __future__ import annotations

import threading

from dcp_cloud.errors import ThrottledError, TransientError
from dcp_cloud.transfer.pace import Pace


class Network:
    """Moves ``per_connection`` bytes a second for each request in flight, and ``total`` at most."""

    def __init__(self, pace: Pace, clock: list[float], *, per_connection: float, total: float) -> None:
        self.pace, self.clock, self.per_connection, self.total = pace, clock, per_connection, total

    def round(self) -> None:
        count, nbytes = self.pace.bound, 1_000_000
        for _ in range(count):
            self.pace.acquire()
        rate = min(self.per_connection * count, self.total)
        for _ in range(count):
            self.clock[0] += nbytes / rate
            self.pace.release(nbytes, None)


def make(max_concurrency: int, *, per_connection: float, total: float) -> Network:
    clock = [0.0]
    return Network(Pace(max_concurrency, clock=lambda: clock[0]), clock, per_connection=per_connection, total=total)


def test_it_rises_to_the_maximum_where_every_connection_adds() -> None:
    """On a network whose connections are slow by themselves, all of them are used."""
    network = make(64, per_connection=90e6, total=1e12)
    for _ in range(20):
        network.round()
    assert network.pace.bound == 64


def test_it_stays_where_more_do_not_help() -> None:
    """On a full link no more requests are sent than fill it, give or take one step."""
    network = make(256, per_connection=90e6, total=4e9)  # 45 connections fill it
    for _ in range(30):
        network.round()
    assert 45 <= network.pace.bound <= 45 * 1.5**2


def test_throttling_halves_it_once_for_a_burst_and_it_recovers_slowly() -> None:
    """Throttled answers that arrive together cut once; afterwards it grows by one a round."""
    network = make(64, per_connection=90e6, total=1e12)
    for _ in range(20):
        network.round()
    pace = network.pace
    for _ in range(10):
        pace.acquire()
    for _ in range(10):
        pace.release(0, ThrottledError("slow down"))
    assert pace.bound == 32
    network.clock[0] += 2
    pace.acquire()
    pace.release(0, ThrottledError("slow down"))
    assert pace.bound == 16
    network.round()
    assert pace.bound <= 17


def test_other_failures_do_not_slow_it_down() -> None:
    """A lost connection says nothing about the load."""
    pace = Pace(8)
    for _ in range(5):
        pace.acquire()
        pace.release(0, TransientError("reset"))
    assert pace.bound == 8


def test_no_more_are_in_flight_than_the_bound() -> None:
    """Whoever comes beyond the bound waits until another request ends."""
    pace, in_flight, peak, lock = Pace(3), [0], [0], threading.Lock()
    full = threading.Barrier(3, timeout=10)

    def work() -> None:
        for turn in range(20):
            pace.acquire()
            with lock:
                in_flight[0] += 1
                peak[0] = max(peak[0], in_flight[0])
            if turn == 0:
                full.wait()
            with lock:
                in_flight[0] -= 1
            pace.release(1, None)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert peak[0] == 3
    assert not any(thread.is_alive() for thread in threads)
