"""When to try again, and for how long."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import RetriesExhaustedError, TransferCancelledError, TransientError
from dcp_cloud.stores.cancel import CancelScope, current_scope
from dcp_cloud.transfer.deadline import Deadlines, allowed_s
from dcp_cloud.transfer.events import EventHook, RequestDone, ignore_event
from dcp_cloud.transfer.pace import Pace
from dcp_cloud.transfer.stall import StallWatch

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_LOOK_AGAIN_S = 30.0
# More would overflow a float; long before that any pause has reached its bound.
_MAX_DOUBLINGS = 64


def _end_of_scope() -> threading.Event:
    scope = current_scope()
    return threading.Event() if scope is None else scope.event


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrier:
    """Repeats one request until it succeeds, fails for good, or runs out of attempts or time.

    Args:
        config: Bounds.
        hook: Told of every try.
        cancelled: Ends a pause at once when set; by default the end of the scope in which the retrier is made.
        pace: Bounds how many requests that move bytes are in flight; None for no bound.
        deadlines: Breaks off requests that move bytes too slowly; None to let them trickle.
        stalls: Told what is under way; None where nobody asks.
        clock: Monotonic time in seconds.
        draw: Random number in ``[0, 1)``.
    """

    config: RetryConfig
    hook: EventHook = ignore_event
    cancelled: threading.Event = field(default_factory=_end_of_scope)
    pace: Pace | None = None
    deadlines: Deadlines | None = None
    stalls: StallWatch | None = None
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random

    def call(self, request: Callable[[], ResultT], *, verb: str, key: str, size_bytes: int = 0) -> ResultT:
        """Run a request, again if need be.

        Args:
            request: The request; the same bytes every time.
            verb: Its name, for events and messages.
            key: The key it concerns.
            size_bytes: Bytes that a success moves.

        Returns:
            What the request returned.

        Raises:
            RetriesExhaustedError: It kept failing with errors that could have passed.
            TransferCancelledError: The transfer ended while it paused.
            DcpCloudError: It failed for good.
        """
        if self.stalls is None:
            return self._repeat(request, verb, key, size_bytes)
        with self.stalls.request(verb, key):
            return self._repeat(request, verb, key, size_bytes)

    def _repeat(self, request: Callable[[], ResultT], verb: str, key: str, size_bytes: int) -> ResultT:
        began_s = self.clock()
        attempt = 1
        while True:
            try_began_s = self.clock()
            try:
                result = self._try(request, verb, key, size_bytes)
            except Exception as error:
                pause_s = self._pause_s(error, attempt, elapsed_s=self.clock() - began_s)
                self._tell(verb, key, 0, try_began_s, attempt, error=error, pause_s=pause_s)
                if pause_s is None:
                    if isinstance(error, TransientError):
                        raise self._exhausted(verb, key, attempt, began_s, error) from error
                    raise
                self._wait(verb, key, attempt, pause_s, error)
                attempt += 1
            else:
                self._tell(verb, key, size_bytes, try_began_s, attempt)
                return result

    def _try(self, request: Callable[[], ResultT], verb: str, key: str, size_bytes: int) -> ResultT:
        scope = current_scope()
        if scope is not None and scope.is_cancelled:
            raise _given_up(verb, key)
        if not size_bytes:
            return request()
        own = CancelScope(scope)
        running = [own]
        if self.pace is not None:
            self.pace.acquire()
        failure: BaseException | None = None
        is_too_slow, began_s = False, self.clock()
        try:
            if self.deadlines is not None:
                self._watch(running, size_bytes, began_s, self.deadlines)
            with own:
                return request()
        except BaseException as error:
            failure = error
            if not isinstance(error, TransientError):
                raise
            if scope is not None and scope.is_cancelled:
                raise _given_up(verb, key) from error
            is_too_slow = own.is_cancelled
            if is_too_slow:
                raise TransientError(
                    f"{verb} took {self.clock() - began_s:.0f} s and was broken off",
                    key=key,
                    cause=error,
                    hint="the link is slow: lower max_concurrency, so that fewer requests share it, or part_size",
                ) from error
            raise
        finally:
            running.clear()
            if self.pace is not None:
                self.pace.release(size_bytes, failure, was_too_slow=is_too_slow)

    def _watch(self, running: list[CancelScope], size_bytes: int, began_s: float, deadlines: Deadlines) -> None:
        """Break a request off when its time is over; there is more of it when others have come to share the link."""
        in_flight = 1 if self.pace is None else self.pace.in_flight
        left_s = began_s + allowed_s(size_bytes, in_flight) - self.clock()
        for own in tuple(running):  # none: it has ended
            if left_s > 0:
                # Looked at now and then, so that of thousands that have ended little is kept for minutes.
                look_s = min(left_s, _LOOK_AGAIN_S)
                deadlines.call_in(look_s, lambda: self._watch(running, size_bytes, began_s, deadlines))
            else:
                own.cancel()

    def _pause_s(self, error: Exception, attempt: int, *, elapsed_s: float) -> float | None:
        if not isinstance(error, TransientError) or attempt >= self.config.max_attempts:
            return None
        bound_s = min(self.config.max_delay_s, self.config.base_delay_s * 2 ** min(attempt - 1, _MAX_DOUBLINGS))
        pause_s = max(self.draw() * bound_s, error.retry_after_s or 0.0)
        return None if elapsed_s + pause_s > self.config.total_timeout_s else pause_s

    def _wait(self, verb: str, key: str, attempt: int, pause_s: float, error: Exception) -> None:
        logger.warning("%s %s: try %d failed, next in %.2f s: %s", verb, key, attempt, pause_s, error)
        if self.cancelled.wait(pause_s):
            raise _given_up(verb, key) from error

    def _exhausted(
        self, verb: str, key: str, attempt: int, began_s: float, error: TransientError
    ) -> RetriesExhaustedError:
        hint = "check the network and the provider's status page; RetryConfig allows more attempts and time"
        return RetriesExhaustedError(
            f"{verb} failed {attempt} times in {self.clock() - began_s:.1f} s",
            key=key,
            cause=error,
            hint=error.hint or hint,
        )

    def _tell(
        self,
        verb: str,
        key: str,
        size_bytes: int,
        began_s: float,
        attempt: int,
        *,
        error: Exception | None = None,
        pause_s: float | None = None,
    ) -> None:
        self.hook(
            RequestDone(
                verb=verb,
                key=key,
                size_bytes=size_bytes,
                duration_s=self.clock() - began_s,
                attempt=attempt,
                error=type(error).__name__ if error else None,
                will_retry=pause_s is not None,
            )
        )


def _given_up(verb: str, key: str) -> TransferCancelledError:
    return TransferCancelledError(f"{verb} was given up", key=key, cause="its result is not wanted any more")
