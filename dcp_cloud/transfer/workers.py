"""Threads that work off tasks until one fails.

Plain threads, started when they are first needed: a ``ThreadPoolExecutor`` refuses work while the interpreter shuts
down, which is exactly when the last un-awaited ``async_save`` of a job runs; and a checkpoint process is daemonic, so
other processes are not to be had.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from typing_extensions import Self  # torch depends on typing_extensions; typing has Self from Python 3.11 on

from dcp_cloud.errors import TransferCancelledError

Task: TypeAlias = Callable[[], None]


class WorkerPool:
    """Runs tasks on threads. The first failure cancels what has not begun and is raised where the caller waits.

    Leaving the ``with`` block waits for every thread, so that no task touches memory that the caller takes back, and
    raises an error that nobody has waited for.

    Args:
        threads: Most threads at once.
        queue_limit: Tasks that may wait; ``submit`` blocks while there are as many.
        name: Name of the threads, for whoever looks at a stack dump.
        on_cancel: Wakes whoever waits for something else that the dropped tasks would have brought; quick.
    """

    def __init__(
        self, threads: int, *, queue_limit: int, name: str, on_cancel: Callable[[], None] | None = None
    ) -> None:
        self._max_threads = threads
        self._queue_limit = queue_limit
        self._name = name
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._running = 0
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._error: BaseException | None = None
        self.cancelled = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.cancel()
            if error is None or (self._error is not None and isinstance(error, TransferCancelledError)):
                self.join()  # raises what nobody has waited for
        except BaseException:
            self.cancel()
            raise
        finally:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    def submit(self, task: Task) -> None:
        """Queue a task, waiting while the queue is full.

        Args:
            task: Work to do on some thread.

        Raises:
            BaseException: The first error of an earlier task.
            TransferCancelledError: The pool was cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._waiting) < self._queue_limit)
            self._raise_if_ended()
            self._waiting.append(task)
            if self._running + len(self._waiting) > len(self._threads) < self._max_threads:
                self._start_thread()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until every task has been done.

        Raises:
            BaseException: The first error of a task.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not (self._waiting or self._running))
            self._raise_if_ended()

    def fail(self, error: BaseException) -> None:
        """Record a failure and cancel the rest; only the first one counts.

        Args:
            error: What went wrong.
        """
        with self._changed:
            if self._error is None and not self.cancelled.is_set():
                self._error = error
            self._cancel()

    def cancel(self) -> None:
        """Drop what has not begun and tell what has begun to stop waiting."""
        with self._changed:
            self._cancel()

    @property
    def _ended(self) -> bool:
        return self.cancelled.is_set()

    def _cancel(self) -> None:
        self.cancelled.set()
        self._waiting.clear()
        if self._on_cancel is not None:
            self._on_cancel()
        self._changed.notify_all()

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise TransferCancelledError("the transfer was cancelled", cause="another part of it failed first")

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            self._run(task)
            del task  # a waiting thread must not keep the last task's buffers alive

    def _run(self, task: Task) -> None:
        try:
            task()
        except BaseException as error:  # whatever it is, the caller's thread has to hear of it
            self.fail(error)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _next_task(self) -> Task | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or bool(self._waiting))
            if not self._waiting:
                return None
            self._running += 1
            task = self._waiting.popleft()
            self._changed.notify_all()
            return task
