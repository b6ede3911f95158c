"""Saves in the background: how many, in which order, and what became of them."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field

from dcp_cloud.manager.ranks import plain_error
from dcp_cloud.manager.writer import StepWriter

logger = logging.getLogger(__name__)


class SaveFuture(Future[None]):
    """The outcome of a save in the background. ``result()`` returns once it is committed, and raises if it is not.

    Args:
        step: What is being saved.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.was_seen = False
        self.set_running_or_notify_cancel()  # it is under way: nobody can take it back by cancel()

    def result(self, timeout: float | None = None) -> None:
        """Wait for the commit.

        Args:
            timeout: At most so long, seconds.

        Raises:
            DcpCloudError: Why the save failed.
            TimeoutError: It has not ended yet.
        """
        self.exception(timeout)
        super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end.

        Args:
            timeout: At most so long, seconds.

        Returns:
            Why the save failed, or None.

        Raises:
            TimeoutError: It has not ended yet.
        """
        error = super().exception(timeout)
        self.was_seen = True
        return error

    def unseen_error(self) -> BaseException | None:
        """Give the error of a save that has failed and of which nobody knows yet."""
        return super().exception(0) if self.done() and not self.was_seen else None


@dataclass(slots=True)
class _Save:
    """One save in the background.

    Args:
        future: Its outcome.
        writer: What can be cancelled.
        settled: Done when nothing that the save has brought about is under way any more.
    """

    future: SaveFuture
    writer: StepWriter
    settled: Future[None] = field(default_factory=Future)


class InFlight:
    """The saves in the background of one manager. Used by one thread; the saves themselves end on others.

    Args:
        limit: How many may wait or run.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._saves: list[_Save] = []

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are being saved."""
        return tuple(save.future.step for save in self._saves if not save.future.done())

    @property
    def last(self) -> SaveFuture | None:
        """The save that was begun last, if it is still known."""
        return self._saves[-1].future if self._saves else None

    def make_room(self) -> None:
        """Wait until one more may begin."""
        running = [save.future for save in self._saves if not save.future.done()]
        wait(running[: max(0, len(running) - self._limit + 1)])

    def drain(self) -> None:
        """Wait until nothing is under way."""
        wait([save.future for save in self._saves])
        wait([save.settled for save in self._saves])

    def wait_for_saves(self, timeout_s: float | None) -> bool:
        """Wait until every save has ended, well or not; retention is not waited for.

        Args:
            timeout_s: At most so long, seconds; None: as long as it takes.

        Returns:
            Whether they have.
        """
        return not wait([save.future for save in self._saves], timeout_s).not_done

    def add(self, writer: StepWriter, future: SaveFuture, started: Future[object], after: Callable[[], None]) -> None:
        """Take over a save that has begun.

        Args:
            writer: Its writer.
            future: What the user gets.
            started: What torch gave.
            after: What to do after the commit; must not raise.
        """
        save = _Save(future, writer)
        self._saves.append(save)
        atexit.unregister(self.report_lost)  # a manager that was closed is used again
        atexit.register(self.report_lost)

        def end(done: Future[object]) -> None:
            error = done.exception()
            if error is None:
                future.set_result(None)
                try:
                    after()
                finally:
                    save.settled.set_result(None)
                return
            plain = plain_error(error, f"the background save of step {future.step}")
            logger.error("the background save of step %d failed: %s", future.step, plain)
            future.set_exception(plain)
            save.settled.set_result(None)

        started.add_done_callback(end)

    def forget_ended(self) -> None:
        """Let go of saves that have ended and of whose failure somebody knows."""
        self._saves = [
            save for save in self._saves if not save.settled.done() or save.future.unseen_error() is not None
        ]

    def unseen_error(self) -> BaseException | None:
        """Give the first error of which nobody knows yet."""
        errors = (save.future.unseen_error() for save in self._saves)
        return next((error for error in errors if error is not None), None)

    def see_errors(self) -> None:
        """Take note that the errors of all saves that have ended are known."""
        for save in self._saves:
            if save.future.done():
                save.future.was_seen = True

    def release(self) -> None:
        """Nothing is under way any more, and the process may end without a word."""
        atexit.unregister(self.report_lost)

    def cancel(self) -> None:
        """Give up what has not been committed; from any thread."""
        for save in tuple(self._saves):
            if not save.future.done():
                save.writer.cancel()

    def report_lost(self) -> None:
        """At the end of the process: say on standard error which errors nobody has asked for.

        Not by the log: that may be switched off, and then nobody would ever know.
        """
        for save in self._saves:
            error = save.future.unseen_error()
            if error is not None:
                with suppress(OSError, ValueError, AttributeError):  # it may be closed, or there may be none
                    sys.stderr.write(f"step {save.future.step} was not saved, and nobody asked: {error}\n")
                    sys.stderr.flush()
