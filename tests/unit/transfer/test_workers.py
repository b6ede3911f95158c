from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable

import pytest

from dcp_cloud.errors import TransferCancelledError
from dcp_cloud.transfer.budget import ByteBudget
from dcp_cloud.transfer.workers import WorkerPool
from tests.unit.transfer.tools import transfer_threads, wait_until


def new_pool(threads: int = 2, queue_limit: int = 2, on_cancel: Callable[[], None] | None = None) -> WorkerPool:
    return WorkerPool(threads, queue_limit=queue_limit, name="dcp_cloud-test", on_cancel=on_cancel)


class _WrongError(Exception):
    pass


def fail() -> None:
    raise _WrongError("first")


def test_all_tasks_are_done_when_join_returns() -> None:
    """Join waits for what waits and for what runs."""
    done: list[int] = []
    with new_pool() as pool:
        for number in range(50):
            pool.submit(lambda number=number: done.append(number))
        pool.join()
        assert sorted(done) == list(range(50))


def test_join_of_an_idle_pool_returns_and_starts_no_thread() -> None:
    """A pool that has nothing to do costs nothing."""
    with new_pool() as pool:
        pool.join()
        assert transfer_threads() == []


def test_threads_are_started_as_they_are_needed() -> None:
    """There is one idle thread at most, and never more threads than allowed."""
    gate = threading.Event()
    begun: queue.SimpleQueue[None] = queue.SimpleQueue()

    def task() -> None:
        begun.put(None)
        assert gate.wait(20)

    with new_pool(threads=4, queue_limit=10) as pool:
        for running, threads in ((1, 2), (2, 3), (3, 4), (4, 4)):
            pool.submit(task)
            begun.get(timeout=20)
            assert len(transfer_threads()) == threads, f"{running} tasks run"
        for _ in range(6):
            pool.submit(task)
        assert len(transfer_threads()) == 4
        gate.set()
        pool.join()


def test_a_pool_of_n_threads_runs_n_tasks_at_once() -> None:
    """Tasks that wait for each other end only if all of them run."""
    barrier = threading.Barrier(4, timeout=20)
    with new_pool(threads=4) as pool:
        for _ in range(4):
            pool.submit(lambda: barrier.wait() and None)
        pool.join()


def test_submit_blocks_while_the_queue_is_full() -> None:
    """No more tasks wait than the limit says: each of them may hold memory."""
    gate = threading.Event()
    waiting_now: list[int] = []
    with new_pool(threads=1, queue_limit=2) as pool:

        def submit_all() -> None:
            for _ in range(20):
                pool.submit(lambda: gate.wait(20) and None)
                waiting_now.append(pool._tasks.qsize())

        feeder = threading.Thread(target=submit_all, daemon=True)
        feeder.start()
        wait_until(lambda: len(waiting_now) == 3, "one task runs and two wait")
        assert pool._tasks.qsize() == 2
        gate.set()
        feeder.join(20)
        pool.join()
    assert max(waiting_now) <= 3, "what runs and what waits, together"
    assert len(waiting_now) == 20


def test_the_first_error_is_raised_where_the_caller_waits() -> None:
    """Of several errors the first one counts, and join raises that very exception."""
    second_may_fail = threading.Event()

    def fail_later() -> None:
        second_may_fail.wait(20)
        raise ValueError("second")

    with pytest.raises(_WrongError, match="first"), new_pool() as pool:
        pool.submit(fail_later)
        pool.submit(fail)
        wait_until(pool.cancelled.is_set, "the first task failed")
        second_may_fail.set()
        pool.join()


def test_submit_raises_an_earlier_error() -> None:
    """Whoever only submits hears of a failure too, even while the queue is full."""
    gate = threading.Event()

    def fail_when_told() -> None:
        gate.wait(20)
        fail()

    with pytest.raises(_WrongError), new_pool(threads=1, queue_limit=1) as pool:
        pool.submit(fail_when_told)
        pool.submit(lambda: None)
        threading.Timer(0, gate.set).start()
        while True:
            pool.submit(lambda: None)


def test_an_error_that_nobody_waited_for_is_raised_at_the_end() -> None:
    """Leaving the block without join loses no error."""
    with pytest.raises(_WrongError), new_pool() as pool:
        pool.submit(fail)


def test_leaving_the_block_waits_for_tasks_that_nobody_waited_for() -> None:
    """Leaving the block without join drops no task either."""
    done: list[int] = []
    with new_pool(threads=1, queue_limit=10) as pool:
        for number in range(5):
            pool.submit(lambda number=number: done.append(number))
    assert done == list(range(5))


def test_the_cause_is_raised_in_place_of_the_cancellation_it_led_to() -> None:
    """A caller that was stopped elsewhere because a task failed hears why."""
    with pytest.raises(_WrongError), new_pool() as pool:
        pool.submit(fail)
        wait_until(pool.cancelled.is_set, "the task failed")
        raise TransferCancelledError("waiting for memory was given up")


def test_an_error_of_the_caller_is_not_replaced() -> None:
    """What the caller raised stays what the caller sees."""
    with pytest.raises(KeyError), new_pool() as pool:
        pool.submit(fail)
        wait_until(pool.cancelled.is_set, "the task failed")
        raise KeyError


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_base_exceptions_of_tasks_reach_the_caller(error: type[BaseException]) -> None:
    """Nothing that a task raises is swallowed."""

    def task() -> None:
        raise error

    with pytest.raises(error), new_pool() as pool:
        pool.submit(task)
        pool.join()


def test_a_failure_drops_what_has_not_begun() -> None:
    """After the first error no waiting task is run."""
    gate = threading.Event()
    ran: list[str] = []

    def fail_when_told() -> None:
        gate.wait(20)
        fail()

    with pytest.raises(_WrongError), new_pool(threads=1, queue_limit=5) as pool:
        pool.submit(fail_when_told)
        for _ in range(5):
            pool.submit(lambda: ran.append("ran"))
        gate.set()
        pool.join()
    assert ran == []


def test_leaving_the_block_waits_for_running_tasks() -> None:
    """No task touches the caller's memory once the block is left, however it is left."""
    finished = threading.Event()
    started = threading.Event()
    with pytest.raises(KeyError), new_pool() as pool:

        def task() -> None:
            started.set()
            pool.cancelled.wait(20)
            finished.set()

        pool.submit(task)
        started.wait(20)
        raise KeyError
    assert finished.is_set()


def press_ctrl_c() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def test_ctrl_c_in_the_waiting_caller_cancels_and_joins() -> None:
    """A signal while the caller waits drops what waits, tells what runs, and leaves no thread."""
    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt), new_pool(threads=1, queue_limit=5) as pool:

        def press() -> None:
            press_ctrl_c()
            assert pool.cancelled.wait(20)

        pool.submit(press)
        for _ in range(5):
            pool.submit(lambda: ran.append("ran"))
        pool.join()
    assert transfer_threads() == []
    assert ran == []


@pytest.mark.parametrize("nth", range(0, 400, 8))
def test_ctrl_c_at_any_moment_of_submitting_leaves_no_lock_taken(nth: int) -> None:
    """Wherever in submitting, waiting for memory or joining the signal hits the caller: all threads end."""
    budget = ByteBudget().open(4)

    def task(number: int) -> None:
        if number == 100 + nth:
            press_ctrl_c()
        budget.release(1)

    with pytest.raises(KeyboardInterrupt), new_pool(threads=4, on_cancel=budget.cancel) as pool:
        for number in range(2000):
            budget.acquire(1)
            pool.submit(lambda number=number: task(number))
        pool.join()
    assert transfer_threads() == []


def test_cancelling_wakes_the_caller_once_and_tells_the_listener() -> None:
    """A pool cancelled from outside ends join and submit with an error of their own, and calls its listener."""
    told: list[str] = []
    pool = new_pool(on_cancel=lambda: told.append("told"))
    with pytest.raises(TransferCancelledError), pool:
        pool.submit(lambda: pool.cancelled.wait(20) and None)
        pool.cancel()
        with pytest.raises(TransferCancelledError):
            pool.submit(lambda: None)
        pool.join()
    assert "told" in told


def test_a_failure_recorded_from_outside_is_raised() -> None:
    """``fail`` is for helpers that are no task of the pool."""
    with pytest.raises(_WrongError), new_pool() as pool:
        pool.fail(_WrongError("first"))
        pool.fail(ValueError("second"))
        pool.join()


def test_waiting_threads_keep_no_task_alive() -> None:
    """A finished task's buffers are let go although its thread waits for the next one."""
    gone = threading.Event()

    class Held:
        def __del__(self) -> None:
            gone.set()

    with new_pool() as pool:
        held = Held()
        pool.submit(lambda held=held: None)
        del held
        pool.join()
        wait_until(gone.is_set, "the buffer was let go")


def test_a_signal_that_does_not_wake_the_main_thread_is_noticed() -> None:
    """A Ctrl-C that lands on another thread, or just before this one goes to sleep, ends the wait all the same."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)

    def task() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        pool.cancelled.wait()

    try:
        with pytest.raises(KeyboardInterrupt), WorkerPool(1, queue_limit=1, name="p") as pool:
            pool.submit(task)
            pool.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
