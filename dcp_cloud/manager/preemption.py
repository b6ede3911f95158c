"""Leaving in time: what happens to saves when the platform sends SIGTERM.

The handler runs in the main thread. If that is in the middle of a save, the handler only sets the clock and the save
goes on; else it waits for the saves in the background itself. What has not ended shortly before the deadline is given
up, so that its uploads are aborted rather than left. Then the handler that was there before gets the signal.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from dcp_cloud.errors import ConfigError
from dcp_cloud.transfer.deadline import Deadlines

logger = logging.getLogger(__name__)

# How much of the time saves may use before they are given up; the rest is for aborting their uploads.
_SHARE_TO_FINISH = 0.8


class Preemption:
    """Turns a signal into an orderly end.

    Args:
        wait_for_saves: Waits at most so many seconds for saves in the background; tells whether they have ended.
        give_up: Cancels the saves in the background.
    """

    def __init__(self, *, wait_for_saves: Callable[[float], bool], give_up: Callable[[], None]) -> None:
        self._wait_for_saves = wait_for_saves
        self._give_up = give_up
        self._deadline_s = 0.0
        self._end_s = 0.0
        self._stop = True
        self._former: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._resources = ExitStack()
        self._saving = 0
        self._cancels: set[Callable[[], None]] = set()
        self._pending: int | None = None
        self._is_leaving = False
        self.is_signalled = False

    def install(self, deadline_s: float, *, stop: bool, signals: tuple[signal.Signals, ...]) -> None:
        """Take over signals.

        Args:
            deadline_s: Time from the signal to the end, seconds.
            stop: Whether the former handler gets the signal when the saves have ended; else it is only noted.
            signals: Which.

        Raises:
            ConfigError: Not in the main thread, or no time.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("on_preemption works in the main thread only", cause="Python handles signals there")
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s={deadline_s!r} is out of range", hint="it must be more than 0")
        self.uninstall()
        self._deadline_s, self._stop = deadline_s, stop
        for number in signals:
            self._former[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Give the signals back to whoever had them; nothing if somebody else has taken them since."""
        if threading.current_thread() is threading.main_thread():
            for number, former in self._former.items():
                if signal.getsignal(number) == self._handle and former is not None:
                    signal.signal(number, former)
            self._former = {}
        self._resources.close()

    @contextmanager
    def saving(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Mark the time in which a thread saves; if it is the main thread, it cannot wait in a handler meanwhile.

        Args:
            cancel: Gives up that save, from any thread, whether it has begun or still waits for the ones before it.
        """
        is_main = threading.current_thread() is threading.main_thread()
        self._saving += is_main
        self._cancels.add(cancel)
        try:
            yield
        finally:
            self._cancels.discard(cancel)
            self._saving -= is_main
            if is_main and self._pending is not None and not self._saving:
                self._leave(self._pending, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_signalled:
            return  # it is known; some platforms say it again and again
        self.is_signalled = True
        logger.warning("%s: %.0f s to end the saves under way", signal.Signals(number).name, self._deadline_s)
        self._end_s = time.monotonic() + self._deadline_s
        if not self._stop:
            return
        self._resources.enter_context(Deadlines()).call_in(self._deadline_s * _SHARE_TO_FINISH, self._give_all_up)
        if self._saving:
            self._pending = number
        else:
            self._leave(number, frame)

    def _give_all_up(self) -> None:
        for cancel in tuple(self._cancels):
            cancel()
        self._give_up()

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if self._is_leaving:
            return
        self._is_leaving = True
        if not self._wait_for_saves(max(0.0, self._end_s - time.monotonic())):
            logger.error("a save did not end in time and is given up; the checkpoints before it are whole")
        former = self._former.get(number)
        logger.warning("%s goes on to the handler that was there before", signal.Signals(number).name)
        if callable(former):
            former(number, frame)
        elif former == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
