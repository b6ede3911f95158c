"""The checkpoints of a run under one roof."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from functools import partial
from types import TracebackType
from typing import Any, SupportsFloat, get_args

import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner
from typing_extensions import Self

from dcp_cloud.checkpoint.location import Location, StoreLike, URILike
from dcp_cloud.checkpoint.planner import CloudLoadPlanner
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CheckpointError, ConfigError
from dcp_cloud.manager.inflight import InFlight, SaveFuture
from dcp_cloud.manager.keeper import DAY_S, Keeper
from dcp_cloud.manager.names import DEFAULT_TEMPLATE, StepNames
from dcp_cloud.manager.notes import check_metrics
from dcp_cloud.manager.preemption import Preemption
from dcp_cloud.manager.prune import RetentionReport
from dcp_cloud.manager.ranks import Ranks
from dcp_cloud.manager.restore import not_found, restore
from dcp_cloud.manager.retention import BestMode, KeepBest, RetentionPolicy
from dcp_cloud.manager.steps import StepInfo, Steps
from dcp_cloud.manager.torch_calls import AsyncMode, TorchCalls
from dcp_cloud.manager.writer import StepWriter
from dcp_cloud.transfer.events import EventHook, ignore_event


class CheckpointManager:
    """Saves the steps of a run, finds the latest one, and deletes what a policy does not keep.

    Each step is a checkpoint of its own below the URI, ``uri/step-100``, that torch and the command line can use too.
    Every rank makes a manager and calls its methods at the same point of the program; rank 0 decides for all.

    Args:
        uri: Where the run is: ``s3://bucket/run`` …
        keep_last: Keep so many of the highest steps.
        keep_every: Keep every step that is a multiple of this.
        best_metric: Keep the best ones by this metric.
        best_mode: Whether less (``min``) or more (``max``) of it is better.
        keep_best: How many of the best.
        name: How the directory of a step is called, with one ``{step}`` or ``{step:08d}``.
        async_mode: Where ``async_save`` works: in a ``thread``, in a ``process``, or, with None, before it returns.
        max_in_flight: How many saves may wait or run in the background; each keeps a copy of its state dict. They are
            sent one after the other. More than one only with ``thread``.
        overwrite: Whether a step that is committed already may be saved again.
        dry_run: Retention only says what it would delete; see ``last_retention``.
        stale_after_s: Retention keeps off a step to which another save has written within this time, seconds.
        process_group: The ranks; None for all.
        no_dist: This process acts alone, even if a process group is initialised.
        transfer: Part length, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the URI to use instead of opening one, or a function that makes one.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        on_event: Told of progress and requests, from worker threads. In process mode it has to be picklable.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        best_metric: str | None = None,
        best_mode: BestMode = "min",
        keep_best: int = 1,
        name: str = DEFAULT_TEMPLATE,
        async_mode: AsyncMode | None = "thread",
        max_in_flight: int = 1,
        overwrite: bool = True,
        dry_run: bool = False,
        stale_after_s: float = DAY_S,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        on_event: EventHook | None = None,
    ) -> None:
        best = KeepBest(metric=best_metric, mode=best_mode, count=keep_best) if best_metric is not None else None
        policy = RetentionPolicy(keep_last=keep_last, keep_every=keep_every, best=best)
        _check_background(async_mode, max_in_flight)
        self._location = Location(uri, transfer=transfer, store=store, config=config, schemes=None)
        self._hook = on_event or ignore_event
        self._steps = Steps(self._location.store, StepNames(name), transfer=self._location.transfer, hook=self._hook)
        self._async_mode = async_mode
        self._overwrite = overwrite
        self._keeper = Keeper(self._steps, policy, dry_run=dry_run, stale_after_s=stale_after_s)
        self._ranks = Ranks(process_group, no_dist=no_dist)
        self._torch = TorchCalls(self._ranks, no_dist=no_dist, async_mode=async_mode)
        self._in_flight = InFlight(max_in_flight)
        self._preemption = Preemption(wait_for_saves=self._in_flight.wait_for_saves, give_up=self._in_flight.cancel)

    @property
    def uri(self) -> str:
        """Where the run is, without options."""
        return self._location.uri.root

    @property
    def last_retention(self) -> RetentionReport | None:
        """What the policy did after the last save, and what went wrong; None on ranks other than the coordinator."""
        return self._keeper.last_report

    def save(
        self,
        step: int,
        state_dict: dict[str, Any],
        metrics: Mapping[str, SupportsFloat] | None = None,
        *,
        planner: SavePlanner | None = None,
    ) -> None:
        """Save a step and return when it is committed; then the policy is applied.

        Args:
            step: The step, the same on every rank.
            state_dict: What to save.
            metrics: Numbers to keep with the checkpoint, for ``best_metric``; those of the coordinator count.
            planner: A save planner of your own.

        Raises:
            DcpCloudError: The step was not saved, or an earlier save in the background was not.
        """
        writer = self._writer(step, metrics)
        with self._preemption.saving(writer.cancel):
            self._settle(step)
            self._torch.save(state_dict, writer, planner)
        # Not within: whoever is told to end now need not wait, since retention may be broken off anywhere.
        self._after_commit(step)

    def async_save(
        self,
        step: int,
        state_dict: dict[str, Any],
        metrics: Mapping[str, SupportsFloat] | None = None,
        *,
        planner: SavePlanner | None = None,
    ) -> SaveFuture:
        """Copy the state dict, and save the copy in the background. Waits while ``max_in_flight`` saves are under way.

        Args:
            step: The step, the same on every rank.
            state_dict: What to save; it may be changed as soon as this returns.
            metrics: As for ``save``.
            planner: A save planner of your own.

        Returns:
            The outcome. If nobody asks for it, a failure is raised by the next call of the manager.

        Raises:
            DcpCloudError: An earlier save in the background failed, or this one could not be begun.
        """
        if self._async_mode is None:
            self.save(step, state_dict, metrics, planner=planner)
            done = SaveFuture(step)
            done.set_result(None)
            return done
        previous = self._in_flight.last
        turn = partial(wait, [previous]) if previous is not None else None
        writer = self._writer(step, metrics, turn=turn)
        with self._preemption.saving(writer.cancel):
            self._in_flight.make_room()
            self._agree(step)
            future = SaveFuture(step)
            started = self._torch.async_save(state_dict, writer, planner)
            self._in_flight.add(writer, future, started, after=partial(self._after_commit, step))
            return future

    def restore(
        self,
        state_dict: dict[str, Any],
        step: int | None = None,
        *,
        planner: LoadPlanner | None = None,
        fall_back: bool = False,
    ) -> int:
        """Load a step into a state dict; every rank loads the same one.

        Args:
            state_dict: What to fill, in place.
            step: Which; None for the latest that is committed.
            planner: A load planner of your own instead of :class:`~dcp_cloud.CloudLoadPlanner`.
            fall_back: Whether to load an earlier one if this is damaged, which is logged. Without it the error names
                the earlier one.

        Returns:
            The step that was loaded.

        Raises:
            CheckpointNotFoundError: There is no checkpoint, or none of that step.
            CorruptCheckpointError: It is damaged.
            StateDictMismatchError: It holds something else.
            DcpCloudError: An earlier save in the background failed, or the store refused.
        """
        self._settle(None)
        load = partial(self._load, state_dict=state_dict, planner=planner or CloudLoadPlanner())
        return restore(self._steps, self._ranks, load, step=step, fall_back=fall_back)

    def latest(self) -> int | None:
        """Find the latest step that is committed.

        Returns:
            The step, the same on every rank; None if there is none.

        Raises:
            StoreError: The store refused.
        """
        return self._ranks.decide(self._steps.latest)

    def list(self) -> tuple[StepInfo, ...]:
        """List the committed steps with their times, sizes and metrics.

        Returns:
            The steps in order, the same on every rank.

        Raises:
            StoreError: The store refused.
        """
        return self._ranks.decide(self._steps.describe)

    def delete(self, step: int) -> None:
        """Delete a step, whatever the policy says of it: its commit first, then its data.

        Args:
            step: Which.

        Raises:
            CheckpointNotFoundError: It is not there.
            CommitConflictError: Another save is writing there.
            DcpCloudError: An earlier save in the background failed, or the store refused.
        """
        self._settle(step)
        if not self._ranks.decide(partial(self._keeper.delete, step)):
            raise not_found(self._steps, step)

    def prune(self, *, dry_run: bool = False) -> RetentionReport:
        """Apply the policy now.

        Args:
            dry_run: Only say what it would delete, and why.

        Returns:
            What was decided and done, the same on every rank.

        Raises:
            CorruptCheckpointError: The newest checkpoint is damaged; nothing was deleted.
            DcpCloudError: An earlier save in the background failed, or the store refused.
        """
        self._settle(None)
        return self._ranks.decide(partial(self._keeper.run, dry_run=dry_run))

    def wait(self) -> None:
        """Wait until nothing is under way in the background, retention included.

        Raises:
            DcpCloudError: A save in the background failed.
        """
        self._in_flight.drain()
        self._agree(None)

    def close(self) -> None:
        """Wait for what is under way and let go of connections and signals; the manager can be used again.

        Raises:
            DcpCloudError: A save in the background failed.
        """
        try:
            self.wait()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # An error is on its way already, and not all ranks may have come here.
        self._in_flight.drain()
        self._in_flight.report_lost()
        self._release()

    @property
    def preempted(self) -> bool:
        """Whether this process was told to end, after ``on_preemption``. Ranks may learn it at different times."""
        return self._preemption.is_signalled

    def any_preempted(self) -> bool:
        """Whether any rank was told to end; every rank has to ask at the same point and gets the same answer."""
        return any(self._ranks.gather(self.preempted))

    def on_preemption(
        self, deadline_s: float = 30.0, *, stop: bool = True, signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    ) -> None:
        """Prepare for being told to end, usually by SIGTERM.

        The saves under way are finished, or given up shortly before the deadline so that nothing is left of them.
        Then the handler that was there before gets the signal; by default that ends the process.

        Args:
            deadline_s: What the platform allows between SIGTERM and SIGKILL, seconds.
            stop: With False the signal is only noted in ``preempted``, and the program goes on: for loops that ask for
                it, save once more and end by themselves.
            signals: Which signals mean it.

        Raises:
            ConfigError: Not in the main thread, or the deadline makes no sense.
        """
        self._preemption.install(deadline_s, stop=stop, signals=tuple(signals))

    def _writer(self, step: int, metrics: Mapping[str, SupportsFloat] | None, **options: Any) -> StepWriter:  # noqa: ANN401
        uri = self._location.uri.child(self._steps.names.name_of(step))
        self._steps.last_begun = step
        return StepWriter(
            uri,
            step=step,
            metrics=check_metrics(metrics),
            overwrite=self._overwrite,
            transfer=self._location.transfer,
            store=self._steps.store_of(step),
            on_event=self._hook,
            **options,
        )

    def _settle(self, step: int | None) -> None:
        """Wait for the saves in the background, and raise what became of them."""
        self._in_flight.wait_for_saves(None)
        self._agree(step)

    def _agree(self, step: int | None) -> None:
        """See that all ranks mean the same step, and raise on all of them if a save failed on any."""
        error = self._in_flight.unseen_error()
        told = self._ranks.gather((step, None if error is None else str(error)))
        if any(text is not None for _, text in told):
            self._in_flight.see_errors()
            self._in_flight.forget_ended()
            rank, text = next((rank, text) for rank, (_, text) in enumerate(told) if text is not None)
            raise error or CheckpointError(f"a save in the background failed on rank {rank}", key=self.uri, cause=text)
        self._in_flight.forget_ended()
        if len({named for named, _ in told}) > 1:
            raise ConfigError(
                "the ranks do not mean the same step",
                cause=f"rank by rank: {', '.join(str(named) for named, _ in told[:8])}",
                hint="call the manager's methods at the same point of the program on every rank",
            )

    def _after_commit(self, step: int) -> None:
        if self._ranks.is_coordinator:
            self._steps.last_saved = step
            if not self.preempted:
                self._keeper.after_commit(step, self._in_flight.steps)

    def _load(self, step: int, state_dict: dict[str, Any], planner: LoadPlanner) -> None:
        reader = CloudStorageReader(
            self._location.uri.child(self._steps.names.name_of(step)),
            transfer=self._location.transfer,
            store=self._steps.store_of(step),
            on_event=self._hook,
        )
        self._torch.load(state_dict, reader, planner)

    def _release(self) -> None:
        self._preemption.uninstall()
        self._in_flight.release()
        self._location.store.close()


def _check_background(async_mode: object, max_in_flight: object) -> None:
    if async_mode is not None and async_mode not in get_args(AsyncMode):
        raise ConfigError(f"async_mode={async_mode!r} is unknown", hint="use 'thread', 'process' or None")
    if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
        raise ConfigError(f"max_in_flight={max_in_flight!r} is out of range", hint="it must be at least 1")
    if max_in_flight > 1 and async_mode == "process":
        raise ConfigError(
            "max_in_flight has to be 1 with async_mode='process'",
            cause="torch's process for saves takes one at a time",
            hint="use async_mode='thread'",
        )
