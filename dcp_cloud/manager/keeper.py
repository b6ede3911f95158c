"""Retention as part of a run: after every commit, without ever making a save wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from datetime import datetime, timedelta, timezone

from dcp_cloud.errors import ConfigError, DcpCloudError
from dcp_cloud.manager.prune import RetentionReport, plan_prune, prune
from dcp_cloud.manager.ranks import plain_error
from dcp_cloud.manager.retention import RetentionPolicy
from dcp_cloud.manager.retire import retire
from dcp_cloud.manager.steps import Steps

logger = logging.getLogger(__name__)

DAY_S = 24 * 3600.0
"""After so long a save that was not committed counts as crashed: no save should take so long."""


class Keeper:
    """Applies a policy, one run of it at a time.

    Args:
        steps: The steps of the run.
        policy: What to keep.
        dry_run: Only say what would be deleted.
        stale_after_s: Keep off a step to which another save has written within this time, seconds.

    Raises:
        ConfigError: The time is negative.
    """

    def __init__(self, steps: Steps, policy: RetentionPolicy, *, dry_run: bool, stale_after_s: float) -> None:
        if not stale_after_s >= 0:
            raise ConfigError(f"stale_after_s={stale_after_s!r} is out of range", hint="it must be at least 0")
        self._steps = steps
        self._policy = policy
        self._dry_run = dry_run
        self._stale_after_s = stale_after_s
        self._lock = threading.Lock()
        self.last_report: RetentionReport | None = None

    def after_commit(self, step: int, protected: Collection[int]) -> None:
        """Apply the policy after a save; what goes wrong is logged and reported, never raised.

        Args:
            step: What was saved.
            protected: Steps that are being saved.
        """
        if self._policy.keeps_all:
            return
        try:
            report = self.run(protected=protected, saved=step)
        except Exception as error:  # the save is made, whatever this was
            plain = plain_error(error, "retention")
            logger.error("step %d is saved, but retention failed: %s", step, plain)
            found = plain if isinstance(plain, DcpCloudError) else None
            report = RetentionReport(uri=self._steps.uri, dry_run=self._dry_run, error=found)
        self.last_report = report
        newest = report.verdicts[-1].step if report.verdicts else step
        if newest > max(step, self._steps.last_begun or 0):
            logger.warning(
                "step %d is saved, but the latest is still %d; delete the later steps if nobody needs them",
                step,
                newest,
            )
        if self._dry_run and report.doomed:
            logger.info("retention would delete steps %s", ", ".join(map(str, report.doomed)))

    def run(
        self, *, protected: Collection[int] = (), saved: int | None = None, dry_run: bool = False
    ) -> RetentionReport:
        """Apply the policy.

        Args:
            protected: Steps that are being saved.
            saved: The step that was just saved, which is whole and stays.
            dry_run: Only say what would be deleted.

        Returns:
            What was decided and done.

        Raises:
            CorruptCheckpointError: The newest checkpoint is damaged; nothing was deleted.
            StoreError: The store refused before anything was decided.
        """
        own = () if saved is None else (saved,)
        with self._lock:
            if dry_run or self._dry_run:
                return plan_prune(self._steps, self._policy, protected={*own, *protected}, trusted=own)
            return prune(
                self._steps,
                self._policy,
                stale_after_s=self._stale_after_s,
                protected={*own, *protected},
                trusted=own,
            )

    def delete(self, step: int) -> bool:
        """Delete a step whatever the policy says.

        Args:
            step: Which.

        Returns:
            Whether it was there.

        Raises:
            CommitConflictError: Another save is writing there.
            StoreError: The store refused.
        """
        stale_before = datetime.now(timezone.utc) - timedelta(seconds=self._stale_after_s)
        with self._lock:
            return retire(self._steps, step, stale_before=stale_before)
