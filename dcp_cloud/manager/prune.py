"""Applying a retention policy to a run: what stays, what goes, and the removal itself.

Safe at any time and from any number of processes: only committed checkpoints are judged, the newest one stays and has
to be whole, and each removal keeps off what somebody else is writing. A commit is deleted only as the version that was
judged, on stores that know conditional deletes; on others a commit within the milliseconds after the last look is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.errors import CheckpointError, CorruptCheckpointError, DcpCloudError, StoreError
from dcp_cloud.manager.retention import Candidate, RetentionPolicy, Verdict, judge
from dcp_cloud.manager.retire import finish_retiring, retire
from dcp_cloud.manager.steps import Steps
from dcp_cloud.stores.base import ObjectMeta

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A checkpoint that the policy does not keep and that was not deleted.

    Args:
        step: Its step.
        error: Why.
    """

    step: int
    error: DcpCloudError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionReport:
    """What a policy did, or would do.

    Args:
        uri: The run, without options.
        dry_run: Whether nothing was to be deleted.
        verdicts: What was decided on each committed checkpoint, and why, by step.
        deleted: Steps that were deleted.
        skipped: Steps that should have been deleted, and why they were not.
        finished: Steps whose removal had broken off earlier and was finished now.
        error: Why the work broke off, or None. What was deleted until then is in ``deleted``.
    """

    uri: str
    dry_run: bool
    verdicts: tuple[Verdict, ...] = ()
    deleted: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    finished: tuple[int, ...] = ()
    error: DcpCloudError | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps that the policy keeps."""
        return tuple(verdict.step for verdict in self.verdicts if verdict.keep)

    @property
    def doomed(self) -> tuple[int, ...]:
        """The steps that the policy does not keep."""
        return tuple(verdict.step for verdict in self.verdicts if not verdict.keep)


def plan_prune(
    steps: Steps, policy: RetentionPolicy, *, protected: Collection[int] = (), trusted: Collection[int] = ()
) -> RetentionReport:
    """Decide what stays and what goes. Nothing is changed.

    Args:
        steps: The steps of the run.
        policy: What to keep.
        protected: Steps that stay in any case.
        trusted: Steps that are known to be whole, since this process has just saved them.

    Returns:
        The decision.

    Raises:
        CorruptCheckpointError: The newest checkpoint is damaged; the others may be the last good ones.
        StoreError: The store refused.
    """
    return _plan(steps, policy, _committed(steps.committed()), protected, trusted)


def prune(
    steps: Steps,
    policy: RetentionPolicy,
    *,
    stale_after_s: float,
    protected: Collection[int] = (),
    trusted: Collection[int] = (),
    only: Collection[int] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> RetentionReport:
    """Delete what a policy does not keep, the lowest step first, and finish removals that had broken off.

    Args:
        steps: The steps of the run.
        policy: What to keep.
        stale_after_s: A save that has not been committed and last wrote so long ago has crashed, seconds.
        protected: Steps that stay in any case.
        trusted: Steps that are known to be whole.
        only: Delete no others than these, which somebody has agreed to; None for all.
        now: Gives the time, with time zone.

    Returns:
        What was done. An error of the store that ends the work early is in it.

    Raises:
        CorruptCheckpointError: The newest checkpoint is damaged; nothing was deleted.
        StoreError: The store refused before anything was decided.
    """
    found = steps.committed()
    commits = _committed(found)
    report = _plan(steps, policy, commits, protected, trusted)
    deleted: list[int] = []
    skipped: list[Skipped] = []
    finished: list[int] = []
    error: DcpCloudError | None = None
    stale_before = now() - timedelta(seconds=stale_after_s)
    try:
        for step in report.doomed:
            if only is not None and step not in only:
                continue
            try:
                if retire(steps, step, stale_before=stale_before, etag=commits[step].etag):
                    deleted.append(step)
            except CheckpointError as conflict:
                logger.warning("step %d is not deleted: %s", step, conflict)
                skipped.append(Skipped(step=step, error=conflict))
        finished.extend(step for step, meta in found.items() if meta is None and finish_retiring(steps, step))
    except StoreError as refusal:
        logger.warning("not everything that the policy does not keep was deleted: %s", refusal)
        error = refusal
    return replace(
        report, dry_run=False, deleted=tuple(deleted), skipped=tuple(skipped), finished=tuple(finished), error=error
    )


def _plan(
    steps: Steps,
    policy: RetentionPolicy,
    commits: dict[int, ObjectMeta],
    protected: Collection[int],
    trusted: Collection[int],
) -> RetentionReport:
    metrics = steps.metrics_of(commits) if policy.best is not None else dict.fromkeys(commits, _NO_METRICS)
    candidates = [Candidate(step=step, metrics=metrics[step]) for step in commits]
    verdicts = judge(policy, candidates, protected=protected)
    if any(not verdict.keep for verdict in verdicts) and (newest := max(commits)) not in trusted:
        _check_whole(steps, newest)
    return RetentionReport(uri=steps.uri, dry_run=True, verdicts=verdicts)


_NO_METRICS: dict[str, float] = {}


def _committed(found: dict[int, ObjectMeta | None]) -> dict[int, ObjectMeta]:
    return {step: meta for step, meta in found.items() if meta is not None}


def _check_whole(steps: Steps, newest: int) -> None:
    problems = verify_checkpoint(steps.store_of(newest), deep=False).problems
    if problems:
        raise CorruptCheckpointError(
            "the newest checkpoint is damaged, so nothing was deleted: an older one may be the last good one",
            key=f"{steps.uri}/{steps.names.name_of(newest)}",
            cause=problems[0].cause,
            hint="see all of the damage with 'dcp-cloud verify', remove it with 'dcp-cloud rm', then prune again",
        )
