from __future__ import annotations

import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest

from dcp_cloud.errors import TransferCancelledError
from dcp_cloud.transfer.budget import Account, ByteBudget
from tests.unit.transfer.tools import wait_until


class Askers:
    """Threads that ask for bytes, each begun when the one before stands in line."""

    def __init__(self, budget: Account) -> None:
        self._budget = budget
        self._threads: list[threading.Thread] = []
        self.granted: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, name: str, nbytes: int, *, own_bytes: int = 0) -> None:
        standing = len(self._budget._budget._line)
        self._begin(name, lambda: self._budget.acquire(nbytes, own_bytes=own_bytes))
        wait_until(lambda: len(self._budget._budget._line) > standing, f"{name} stands in line")

    def _begin(self, name: str, acquire: Callable[[], None]) -> None:
        def work() -> None:
            try:
                acquire()
            except TransferCancelledError:
                self.granted.put(f"{name} was sent away")
            else:
                self.granted.put(name)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def test_bytes_are_granted_in_the_order_in_which_they_were_asked_for() -> None:
    """A small request does not overtake a large one, else the large one could wait for ever."""
    budget = ByteBudget().open(10)
    budget.acquire(10)
    askers = Askers(budget)
    askers.ask("six", 6)
    askers.ask("five", 5)
    askers.ask("one", 1)
    budget.release(10)
    assert askers.granted.get(timeout=20) == "six"
    assert budget.held_bytes == 6
    assert len(budget._budget._line) == 2, "one would fit, but five is before it"
    budget.release(6)
    assert {askers.granted.get(timeout=20), askers.granted.get(timeout=20)} == {"five", "one"}
    assert budget.held_bytes == 6
    askers.end()


def test_a_request_above_the_limit_passes_alone() -> None:
    """What is larger than the whole budget waits until nothing is held, and then passes."""
    budget = ByteBudget().open(10)
    budget.acquire(1)
    askers = Askers(budget)
    askers.ask("oversize", 25)
    budget.release(1)
    assert askers.granted.get(timeout=20) == "oversize"
    assert budget.held_bytes == budget.peak_bytes == 25
    askers.ask("next", 1)
    budget.release(25)
    assert askers.granted.get(timeout=20) == "next"
    askers.end()


def test_own_bytes_are_no_reason_to_wait() -> None:
    """Whoever holds all there is and can release it only by going on is let on."""
    budget = ByteBudget().open(10)
    budget.acquire(8)
    budget.acquire(5, own_bytes=8)
    assert budget.held_bytes == 13


def test_bytes_of_others_are_a_reason_to_wait() -> None:
    """Own bytes excuse only themselves."""
    budget = ByteBudget().open(10)
    budget.acquire(4)
    budget.acquire(4)
    askers = Askers(budget)
    askers.ask("more", 5, own_bytes=4)
    assert budget.held_bytes == 8
    budget.release(4)
    assert askers.granted.get(timeout=20) == "more"
    askers.end()


def test_exactly_the_limit_fits() -> None:
    """The limit is what may be held, not what must be left below."""
    budget = ByteBudget().open(10)
    budget.acquire(4)
    budget.acquire(6)
    assert budget.held_bytes == 10


def test_closing_sends_everybody_away_who_waits_or_comes() -> None:
    """After close nobody waits: not those in line, not those who ask later, even if there is room."""
    budget = ByteBudget().open(10)
    budget.acquire(10)
    askers = Askers(budget)
    askers.ask("first", 1)
    askers.ask("second", 1)
    budget.cancel()
    assert {askers.granted.get(timeout=20) for _ in range(2)} == {"first was sent away", "second was sent away"}
    budget.release(10)
    with pytest.raises(TransferCancelledError):
        budget.acquire(1)
    assert budget.held_bytes == 0
    askers.end()


def test_many_threads_never_hold_more_than_the_limit() -> None:
    """Under load the bound holds at every moment, and all bytes come back."""
    budget = ByteBudget().open(10)

    def work(nbytes: int) -> None:
        for _ in range(200):
            budget.acquire(nbytes)
            budget.release(nbytes)

    threads = [threading.Thread(target=work, args=(1 + number % 7,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert budget.held_bytes == 0
    assert 0 < budget.peak_bytes <= 10


def test_accounts_share_one_bound() -> None:
    """What one transfer holds is a reason for another to wait, each up to the limit of its own settings."""
    budget = ByteBudget()
    small, large = budget.open(10), budget.open(20)
    small.acquire(10)
    large.acquire(10)
    askers = Askers(small)
    askers.ask("small", 1)
    large.release(10)
    assert askers.granted.empty(), "ten bytes are still held"
    small.release(10)
    assert askers.granted.get(timeout=20) == "small"
    assert (budget.held_bytes, budget.peak_bytes) == (1, 20)
    askers.end()


def test_cancelling_one_account_wakes_only_its_own() -> None:
    """The failure of one transfer sends nobody else away."""
    budget = ByteBudget()
    failing, other = budget.open(10), budget.open(10)
    other.acquire(10)
    mine, theirs = Askers(failing), Askers(other)
    mine.ask("failing", 1)
    theirs.ask("other", 1)
    failing.cancel()
    assert mine.granted.get(timeout=20) == "failing was sent away"
    assert theirs.granted.empty()
    other.release(10)
    assert theirs.granted.get(timeout=20) == "other"
    mine.end()
    theirs.end()


def test_a_closed_account_gives_everything_back() -> None:
    """Whatever a failed transfer never released is there for others once it has ended; late releases change nothing."""
    budget = ByteBudget()
    failing, other = budget.open(10), budget.open(10)
    failing.acquire(8)
    askers = Askers(other)
    askers.ask("other", 5)
    failing.cancel()
    assert askers.granted.empty(), "its threads may still use the memory"
    failing.close()
    assert askers.granted.get(timeout=20) == "other"
    failing.release(8)
    assert budget.held_bytes == 5
    askers.end()


def test_two_that_wait_for_each_other_go_on() -> None:
    """When all that is held belongs to those who wait, the first of them is let on: nobody else could."""
    budget = ByteBudget()
    one, two = budget.open(10), budget.open(10)
    one.acquire(5)
    two.acquire(5)
    first, second = Askers(one), Askers(two)
    first.ask("one", 4, own_bytes=5)
    second._begin("two", lambda: two.acquire(4, own_bytes=5))
    assert first.granted.get(timeout=20) == "one"
    assert budget.held_bytes == 14
    one.release(9)
    assert second.granted.get(timeout=20) == "two"
    first.end()
    second.end()


def test_parked_bytes_are_no_reason_to_wait() -> None:
    """What is held by a thread that runs another transfer cannot come back before that has ended."""
    budget = ByteBudget()
    sending, reading = budget.open(10), budget.open(10)
    sending.acquire(8)
    askers = Askers(reading)
    askers.ask("reading", 5)
    with sending.parked(6):
        assert askers.granted.empty(), "two bytes are under way"
        sending.release(2)
        assert askers.granted.get(timeout=20) == "reading"
        reading.release(5)
    askers.ask("later", 5)
    assert askers.granted.empty(), "nothing is parked any more"
    sending.release(6)
    assert askers.granted.get(timeout=20) == "later"
    askers.end()


def test_a_closed_account_has_nothing_parked() -> None:
    """A transfer that ended while it was parked excuses nobody else."""
    budget = ByteBudget()
    ended, other = budget.open(10), budget.open(10)
    ended.acquire(8)
    with ended.parked(8):
        ended.close()
        other.acquire(8)
        askers = Askers(other)
        askers.ask("more", 5)
        assert askers.granted.empty()
        other.release(8)
        assert askers.granted.get(timeout=20) == "more"
    askers.end()


def test_who_does_not_want_to_wait_takes_only_what_is_free() -> None:
    """Bytes for an extra are granted at once or not at all, and never before somebody who waits."""
    budget = ByteBudget().open(10)
    assert budget.try_acquire(6)
    assert not budget.try_acquire(5)
    askers = Askers(budget)
    askers.ask("five", 5)
    assert not budget.try_acquire(1)
    budget.release(6)
    assert askers.granted.get(timeout=20) == "five"
    askers.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_with_nothing_held() -> None:
    """What the parent's transfers hold and wait for is not there in a child."""
    script = """
        import os, threading
        from dcp_cloud.transfer.budget import PROCESS_BUDGET
        account = PROCESS_BUDGET.open(10)
        account.acquire(10)
        PROCESS_BUDGET._lock.acquire()  # as another thread may have done
        if (child := os.fork()) == 0:
            PROCESS_BUDGET.open(10).acquire(10)
            os._exit(7 if PROCESS_BUDGET.held_bytes == 10 else 1)
        PROCESS_BUDGET._lock.release()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), PROCESS_BUDGET.held_bytes)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout == "7 10\n"
