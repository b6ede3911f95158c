"""Threads that work off tasks until one fails.

Plain threads, started when they are first needed: a ``ThreadPoolExecutor`` refuses work while the interpreter shuts
down, which is exactly when the last un-awaited ``async_save`` of a job runs; and a checkpoint process is daemonic, so
other processes are not to be had.

The caller and the threads meet in ``SimpleQueue`` only, never in a ``Condition``: a Ctrl-C that hits the main thread
inside a ``Condition`` can leave its lock taken, and then the threads that it wants to end wait for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import TypeAlias

from typing_extensions import Self  # torch depends on typing_extensions; typing has Self from Python 3.11 on

from dcp_cloud.errors import TransferCancelledError
from dcp_cloud.stores.cancel import CancelScope, current_scope
from dcp_cloud.transfer.waiting import take

Task: TypeAlias = Callable[[], None]


class WorkerPool:
    """Runs tasks on threads. The first failure cancels what has not begun and is raised where the caller waits.

    Leaving the ``with`` block waits for every thread, so that no task touches memory that the caller takes back, and
    raises an error that nobody has waited for. A pool that is made within a scope is cancelled with it.

    Args:
        threads: Most threads at once.
        queue_limit: Tasks that may wait while all threads are busy; ``submit`` blocks while there are as many.
        name: Name of the threads, for whoever looks at a stack dump.
        on_cancel: Wakes whoever waits for something else that the dropped tasks would have brought; quick.
    """

    def __init__(
        self, threads: int, *, queue_limit: int, name: str, on_cancel: Callable[[], None] | None = None
    ) -> None:
        self._max_threads = threads
        self._name = name
        self._on_cancel = on_cancel
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        # A token for each task that may run or wait; whoever submits takes one, the end of the task brings it back.
        self._places = threads + queue_limit
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._places):
            self._free.put(None)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self.scope = CancelScope()
        self.cancelled = self.scope.event
        self._around = current_scope()
        if self._around is not None:
            self._around.add(self.cancel)

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
            if self._around is not None:
                self._around.remove(self.cancel)
            self.close()
            for thread in self._threads:
                if thread.ident is not None:  # None: it could not be started
                    thread.join()

    def submit(self, task: Task) -> None:
        """Queue a task, waiting while the queue is full.

        Args:
            task: Work to do on some thread.

        Raises:
            BaseException: The first error of an earlier task.
            TransferCancelledError: The pool was cancelled.
        """
        self._raise_if_ended()
        take(self._free)
        if self.cancelled.is_set():
            self._free.put(None)  # it was brought to wake somebody; there may be others who wait
            self._raise_if_ended()
        self._tasks.put(task)
        if not self._threads:
            self._start_thread()

    def join(self) -> None:
        """Wait until every task has been done.

        Raises:
            BaseException: The first error of a task.
        """
        taken = 0
        try:
            while taken < self._places:
                self._raise_if_ended()
                take(self._free)
                taken += 1
            self._raise_if_ended()
        finally:
            for _ in range(taken):
                self._free.put(None)

    def fail(self, error: BaseException) -> None:
        """Record a failure and cancel the rest; only the first one counts.

        Args:
            error: What went wrong.
        """
        with self._lock:
            if self._error is None and not self.cancelled.is_set():
                self._error = error
        self.cancel()

    def cancel(self) -> None:
        """Drop what has not begun and tell what has begun to stop waiting."""
        self.scope.cancel()
        if self._on_cancel is not None:
            self._on_cancel()
        self._free.put(None)

    def close(self) -> None:
        """Let the threads end when all that was submitted is done, without waiting for them."""
        self._tasks.put(None)

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error
        if self.cancelled.is_set():
            raise TransferCancelledError("the transfer was cancelled", cause="another part of it failed first")

    def _start_thread(self) -> None:
        with self._lock:
            if len(self._threads) == self._max_threads or self.cancelled.is_set():
                return
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._run(task)
            del task  # a waiting thread must not keep the last task's buffers alive
            self._free.put(None)
        self._tasks.put(None)  # the end is for all threads

    def _run(self, task: Task) -> None:
        if self.cancelled.is_set():
            return
        try:
            # The next one to be idle. Started here and not where tasks are submitted, since that is the main thread,
            # and a Ctrl-C that hits it while it starts a thread can leave that thread unable to begin.
            self._start_thread()
            with self.scope:
                task()
        except BaseException as error:  # whatever it is, the caller's thread has to hear of it
            self.fail(error)
