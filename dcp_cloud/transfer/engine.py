"""What every transfer runs on: threads, a share of the memory, requests that are paced, timed, raced and repeated."""

from __future__ import annotations

import weakref
from functools import partial
from types import TracebackType

from typing_extensions import Self

from dcp_cloud.config import TransferConfig
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.budget import PROCESS_BUDGET
from dcp_cloud.transfer.deadline import Deadlines
from dcp_cloud.transfer.events import EventHook, Phase
from dcp_cloud.transfer.hedge import Hedger
from dcp_cloud.transfer.pace import Pace
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.stall import StallWatch
from dcp_cloud.transfer.workers import WorkerPool


class Engine:
    """Runs one transfer. Leaving the ``with`` block ends its threads, and gives back its memory when they are gone.

    Args:
        store: Where from or to; tries once.
        config: Concurrency, memory, retries.
        name: Name of the threads.
        hook: Told of requests and stalls.
        phase: What the transfer is part of.
        queue_limit: Tasks that may wait for a thread.

    Attributes:
        pool: Runs the tasks. Its end wakes those who wait for memory.
        budget: This transfer's account of the memory that the process may hold.
        store: The store, with retries.
        hedger: Races slow requests.
    """

    def __init__(
        self,
        store: ObjectStore,
        config: TransferConfig,
        *,
        name: str,
        hook: EventHook,
        phase: Phase,
        queue_limit: int,
    ) -> None:
        self.budget = PROCESS_BUDGET.open(config.max_inflight_bytes)
        # What a failed part holds is not released before the end, so whoever waits for memory has to be woken.
        self.pool = WorkerPool(config.max_concurrency, queue_limit=queue_limit, name=name, on_cancel=self.budget.cancel)
        self.hedger = Hedger()
        self._deadlines = Deadlines()
        budget = self.budget
        self._stalls = StallWatch(
            phase=phase,
            after_s=config.stall_warning_s,
            hook=hook,
            waits_for_memory=lambda: budget.is_waiting,
        )
        retrier = Retrier(
            config=config.retry,
            hook=hook,
            cancelled=self.pool.cancelled,
            pace=Pace(config.max_concurrency),
            deadlines=self._deadlines,
            stalls=self._stalls,
        )
        self.store = RetryingStore(store, retrier)
        # A Ctrl-C can hit between the block and its exit, which is then never run. The threads do not hold the engine,
        # so that its end is theirs.
        self._end = weakref.finalize(self, _end_threads, self.pool, self.hedger, self._deadlines)
        self._end.atexit = False  # they are daemons

    def __enter__(self) -> Self:
        return self

    def watch_stalls(self) -> None:
        """Begin to warn when nothing succeeds. To be called within the ``with`` block, which ends it; once."""
        # By a thread of the pool: see there why the main thread starts as few threads as it can.
        self.pool.submit(partial(self._stalls.watch, self._deadlines))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._deadlines, self.hedger:
                self.pool.__exit__(kind, error, trace)
        finally:
            self.budget.close()
        self._end.detach()


def _end_threads(pool: WorkerPool, hedger: Hedger, deadlines: Deadlines) -> None:
    """Let all threads end. It may run in the middle of anything, whatever locks are held: it takes none."""
    pool.close()
    hedger.close()
    deadlines.close()
