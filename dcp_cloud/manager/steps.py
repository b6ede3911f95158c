"""Which steps are committed below the manager's URI.

A directory counts once there is a ``.metadata`` in it, which is asked for by name: what a listing shows, in whichever
order and however late, only says where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

from dcp_cloud.checkpoint.catalog import list_checkpoints
from dcp_cloud.checkpoint.commit import object_keys
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import BucketNotFoundError, CheckpointError, NotFoundError
from dcp_cloud.format.layout import METADATA_KEY
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.manager.names import StepNames
from dcp_cloud.manager.notes import read_metrics
from dcp_cloud.stores.base import ObjectMeta, ObjectStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.workers import WorkerPool

T = TypeVar("T")

# Small requests at once: enough to look at a thousand steps in seconds.
_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One committed checkpoint.

    Args:
        step: Its step.
        uri: Where it is, without options.
        committed_at: When it was committed, if the store tells.
        size_bytes: Length of its objects.
        metrics: What was saved with it; None if its commit cannot be read.
    """

    step: int
    uri: str
    committed_at: datetime | None
    size_bytes: int
    metrics: dict[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a commit says, as far as retention wants to know.

    Args:
        etag: Version of the commit.
        metrics: The metrics in it.
        keys: The data objects it names, relative to the step's directory.
    """

    etag: str
    metrics: dict[str, float]
    keys: frozenset[str]


class Steps:
    """The steps below a place.

    Args:
        store: Store rooted at the manager's URI.
        names: How the directories of steps are called.
        transfer: Concurrency and retries.
        hook: Told of requests.
    """

    def __init__(
        self, store: ObjectStore, names: StepNames, *, transfer: TransferConfig, hook: EventHook = ignore_event
    ) -> None:
        self._store = store
        self.names = names
        self._transfer = transfer
        self._hook = hook
        # By step, for one version of its commit: a commit may be long, and is read once.
        self._metrics: dict[int, tuple[str, dict[str, float] | None]] = {}
        self.last_begun: int | None = None
        """The step that this process has begun to save last."""
        self.last_saved: int | None = None
        """The step that this process has committed last: it is asked for although a listing may not show it yet."""

    @property
    def uri(self) -> str:
        """Where the steps are, without options."""
        return self._store.uri

    def store_of(self, step: int) -> PrefixStore:
        """Give a store rooted at a step."""
        return PrefixStore(self._store, self.names.name_of(step))

    def retrying(self, step: int) -> RetryingStore:
        """Give a store rooted at a step that repeats what may pass."""
        return RetryingStore(self.store_of(step), Retrier(config=self._transfer.retry, hook=self._hook))

    def head(self, step: int) -> ObjectMeta | None:
        """Describe the commit of a step; None if there is none.

        Raises:
            StoreError: The store refused.
        """
        try:
            return self.retrying(step).head(METADATA_KEY)
        except BucketNotFoundError:
            raise
        except NotFoundError:
            return None

    def latest(self, *, below: int | None = None) -> int | None:
        """Find the highest committed step.

        Args:
            below: Only steps less than this.

        Returns:
            The step, or None if there is none.

        Raises:
            StoreError: The store refused.
        """
        for step in reversed(self._candidates()):
            if (below is None or step < below) and self.head(step) is not None:
                return step
        return None

    def committed(self) -> dict[int, ObjectMeta | None]:
        """See which steps are committed.

        Returns:
            Step to its commit, in order; None for a directory without one.

        Raises:
            StoreError: The store refused.
        """
        return self._each(self._candidates(), self.head)

    def metrics_of(self, commits: dict[int, ObjectMeta]) -> dict[int, dict[str, float] | None]:
        """Read the metrics of steps.

        Args:
            commits: Step to its commit.

        Returns:
            Step to metrics; None for a commit that cannot be read.

        Raises:
            StoreError: The store refused.
        """
        known = {step: self._metrics.get(step, ("", None)) for step in commits}
        unknown = [step for step, meta in commits.items() if known[step][0] != meta.etag]
        for step, commit in self._each(unknown, self._try_read).items():
            known[step] = (commit.etag, commit.metrics) if commit is not None else (commits[step].etag, None)
        self._metrics = known
        return {step: metrics for step, (_, metrics) in known.items()}

    def read(self, step: int) -> Commit:
        """Read the commit of a step.

        Raises:
            NotFoundError: There is none.
            CheckpointError: It cannot be understood.
            StoreError: The store refused.
        """
        store = self.store_of(step)
        pickled, etag = read_object(store, METADATA_KEY, self._transfer, hook=self._hook)
        metadata = load_metadata(pickled, key=f"{store.uri}/{METADATA_KEY}")
        return Commit(etag=etag, metrics=read_metrics(metadata), keys=frozenset(object_keys(metadata)))

    def describe(self) -> tuple[StepInfo, ...]:
        """List the committed steps with their times, sizes and metrics, in order.

        Raises:
            StoreError: The store refused.
        """
        entries = {
            step: entry
            for entry in list_checkpoints(self._store, transfer=self._transfer, hook=self._hook)
            if entry.state == "complete" and (step := self.names.step_in(entry.path)) is not None
        }
        commits = {step: meta for step, meta in self._each(sorted(entries), self.head).items() if meta is not None}
        metrics = self.metrics_of(commits)
        return tuple(
            StepInfo(
                step=step,
                uri=entries[step].uri,
                committed_at=meta.modified_at,
                size_bytes=entries[step].size_bytes,
                metrics=metrics[step],
            )
            for step, meta in commits.items()
        )

    def _candidates(self) -> list[int]:
        """List the steps that have a directory, committed or not, in order."""
        root = RetryingStore(self._store, Retrier(config=self._transfer.retry, hook=self._hook))
        steps = {self.names.step_in(prefix.rpartition("/")[2]) for prefix in root.list_prefixes()}
        return sorted(step for step in {*steps, self.last_saved} if step is not None)

    def _try_read(self, step: int) -> Commit | None:
        try:
            return self.read(step)
        except (CheckpointError, NotFoundError):
            return None

    def _each(self, steps: Iterable[int], task: Callable[[int], T]) -> dict[int, T]:
        """Do something for many steps at once; the result is in the order of the steps."""
        steps = list(steps)
        found: dict[int, T] = {}

        def do(step: int) -> None:
            found[step] = task(step)

        if len(steps) < 2:
            for step in steps:
                do(step)
        else:
            with WorkerPool(min(_THREADS, len(steps)), queue_limit=_THREADS, name="dcp_cloud-manager") as pool:
                for step in steps:
                    pool.submit(partial(do, step))
                pool.join()
        return {step: found[step] for step in steps}
