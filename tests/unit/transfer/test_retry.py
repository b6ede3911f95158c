from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import (
    NotFoundError,
    RetriesExhaustedError,
    ThrottledError,
    TransferCancelledError,
    TransientError,
)
from dcp_cloud.transfer.events import RequestDone, TransferEvent
from dcp_cloud.transfer.retry import Retrier


class PausingEvent(threading.Event):
    """Lets time pass on the test's clock instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.now_s += timeout
        return self.is_set()


class Case:
    """A retrier with its own clock and draw, and a request that fails as often as is said."""

    def __init__(self, retry: RetryConfig, *, draw: Callable[[], float] = lambda: 0.999, try_s: float = 0.0) -> None:
        self.event = PausingEvent()
        self.told: list[TransferEvent] = []
        self.tries = 0
        self.retrier = Retrier(
            config=retry, hook=self.told.append, cancelled=self.event, clock=lambda: self.event.now_s, draw=draw
        )
        self._try_s = try_s

    def call(self, errors: Iterator[Exception]) -> str:
        def request() -> str:
            self.tries += 1
            self.event.now_s += self._try_s
            error = next(errors, None)
            if error is not None:
                raise error
            return "answer"

        return self.retrier.call(request, verb="put", key="k", size_bytes=7)


def times(number: int, error: Exception | None = None) -> Iterator[Exception]:
    return iter([error or TransientError("lost")] * number)


def forever(error: Exception) -> Iterator[Exception]:
    while True:
        yield error


def test_the_first_success_is_returned_without_a_pause() -> None:
    """What works is neither repeated nor delayed."""
    case = Case(RetryConfig())
    assert case.call(times(0)) == "answer"
    assert case.event.pauses == []
    assert case.tries == 1


def test_the_bound_of_the_pause_doubles_up_to_its_maximum() -> None:
    """Full jitter draws below bounds of base, 2 base, 4 base … and never above the maximum."""
    case = Case(RetryConfig(base_delay_s=1, max_delay_s=5), draw=lambda: 1.0)
    assert case.call(times(5)) == "answer"
    assert case.event.pauses == [1, 2, 4, 5, 5]


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 8))
def test_pauses_are_drawn_evenly_from_zero_to_the_bound(drawn: float, failures: int) -> None:
    """A pause is the drawn share of its bound, zero included: many ranks do not come back together."""
    case = Case(RetryConfig(base_delay_s=0.5, max_delay_s=8), draw=lambda: drawn)
    case.call(times(failures))
    assert case.event.pauses == [pytest.approx(drawn * min(8, 0.5 * 2**n)) for n in range(failures)]


def test_retry_after_is_honoured_even_above_the_maximum_pause() -> None:
    """The provider knows better; a longer drawn pause still counts."""
    case = Case(RetryConfig(base_delay_s=1, max_delay_s=2), draw=lambda: 0.5)
    case.call(iter([ThrottledError("slow", retry_after_s=30), ThrottledError("slow", retry_after_s=0.1)]))
    assert case.event.pauses == [30, 1]


def test_attempts_are_bounded() -> None:
    """After ``max_attempts`` tries the last error is told as the cause."""
    case = Case(RetryConfig(max_attempts=3))
    with pytest.raises(RetriesExhaustedError, match="put failed 3 times") as caught:
        case.call(forever(ThrottledError("slow down", key="k")))
    assert case.tries == 3
    assert len(case.event.pauses) == 2
    assert isinstance(caught.value.__cause__, ThrottledError)
    assert caught.value.cause == "ThrottledError: slow down [k]"
    assert caught.value.key == "k"
    assert pickle.loads(pickle.dumps(caught.value)).cause == caught.value.cause


def test_one_attempt_means_no_retry() -> None:
    """``max_attempts`` counts the first try."""
    case = Case(RetryConfig(max_attempts=1))
    with pytest.raises(RetriesExhaustedError):
        case.call(times(1))
    assert case.tries == 1


def test_time_is_bounded_pauses_and_tries_together() -> None:
    """No pause begins that would end after the total time."""
    case = Case(RetryConfig(base_delay_s=4, max_delay_s=4, total_timeout_s=9.5), draw=lambda: 1.0, try_s=1)
    with pytest.raises(RetriesExhaustedError):
        case.call(forever(TransientError("lost")))
    assert case.event.pauses == [4]
    assert case.event.now_s == 6


def test_a_retry_after_beyond_the_total_time_ends_it_at_once() -> None:
    """Nobody waits for an answer that may not be used."""
    case = Case(RetryConfig(total_timeout_s=10))
    with pytest.raises(RetriesExhaustedError):
        case.call(forever(ThrottledError("slow", retry_after_s=60)))
    assert case.event.pauses == []


def test_thousands_of_attempts_do_not_overflow() -> None:
    """The doubling ends before it leaves the range of a float."""
    case = Case(RetryConfig(max_attempts=3000, base_delay_s=0, max_delay_s=0))
    assert case.call(times(2000)) == "answer"


@pytest.mark.parametrize("error", [NotFoundError("gone"), ValueError("a bug"), KeyError("k")])
def test_what_cannot_pass_is_raised_as_it_is(error: Exception) -> None:
    """Only transient errors are repeated."""
    case = Case(RetryConfig())
    with pytest.raises(type(error)) as caught:
        case.call(times(1, error))
    assert caught.value is error
    assert case.tries == 1


def test_a_lasting_error_after_transient_ones_is_raised_as_it_is() -> None:
    """The errors before do not change what the last one is."""
    case = Case(RetryConfig())
    with pytest.raises(NotFoundError):
        case.call(iter([TransientError("lost"), NotFoundError("gone")]))


def test_a_cancelled_transfer_ends_the_pause() -> None:
    """The error says that it was given up, and keeps what had failed as its cause."""
    case = Case(RetryConfig())
    case.event.set()
    lost = TransientError("lost")
    with pytest.raises(TransferCancelledError) as caught:
        case.call(times(1, lost))
    assert caught.value.__cause__ is lost
    assert case.tries == 1


def test_a_real_pause_is_interrupted() -> None:
    """Cancelling wakes a pause of minutes at once."""
    cancelled, paused = threading.Event(), threading.Event()
    retrier = Retrier(
        config=RetryConfig(base_delay_s=200, max_delay_s=200),
        hook=lambda _event: paused.set(),
        cancelled=cancelled,
        draw=lambda: 0.9,
    )
    errors: list[BaseException] = []

    def work() -> None:
        try:
            retrier.call(lambda: _raise(TransientError("lost")), verb="put", key="k")
        except TransferCancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert paused.wait(20)
    cancelled.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1


def _raise(error: Exception) -> None:
    raise error


def test_every_try_is_told() -> None:
    """The hook hears of each try: bytes only for the one that moved them, and whether another follows."""
    case = Case(RetryConfig(max_attempts=5), try_s=2)
    case.call(times(1))
    first, second = case.told
    assert isinstance(first, RequestDone)
    assert isinstance(second, RequestDone)
    assert (first.verb, first.key, first.attempt, first.size_bytes) == ("put", "k", 1, 0)
    assert (first.error, first.will_retry, first.duration_s) == ("TransientError", True, 2)
    assert (second.attempt, second.size_bytes, second.error, second.will_retry) == (2, 7, None, False)


def test_the_last_failure_is_told_as_final() -> None:
    """``will_retry`` is false when nothing follows."""
    case = Case(RetryConfig(max_attempts=2))
    with pytest.raises(RetriesExhaustedError):
        case.call(times(2))
    assert [event.will_retry for event in case.told if isinstance(event, RequestDone)] == [True, False]
