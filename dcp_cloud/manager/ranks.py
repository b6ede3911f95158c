"""Several ranks that act as one: the coordinator decides, everybody learns what, and a failure is everybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud.errors import CheckpointError, DcpCloudError, TransferCancelledError

T = TypeVar("T")


class Ranks:
    """The ranks that share a manager.

    Args:
        process_group: The ranks; None for all.
        no_dist: This process acts alone, even if a process group is initialised.
    """

    def __init__(self, process_group: dist.ProcessGroup | None, *, no_dist: bool) -> None:
        self.is_initialised = dist.is_available() and dist.is_initialized()
        self.is_distributed = not no_dist and self.is_initialised
        self.group = process_group if self.is_distributed else None
        self.is_coordinator = not self.is_distributed or dist.get_rank(process_group) == 0
        self._background: dist.ProcessGroup | None = None

    def background_group(self) -> dist.ProcessGroup | None:
        """Give a group of the same ranks for saves in threads, whose messages must not meet those of the training.

        Every rank has to call it the first time; later ones need no communication.

        Returns:
            The group; None without ranks.
        """
        if self.is_distributed and self._background is None:
            members = dist.get_process_group_ranks(self.group or dist.group.WORLD)
            self._background = cast(
                "dist.ProcessGroup",
                dist.new_group(members, backend="gloo", use_local_synchronization=self.group is not None),
            )
        return self._background

    def decide(self, decision: Callable[[], T]) -> T:
        """Let the coordinator do something and tell everybody.

        Args:
            decision: What to do there.

        Returns:
            What it gave, on every rank.

        Raises:
            DcpCloudError: What it raised, on every rank.
        """
        if not self.is_distributed:
            return decision()
        told: list[tuple[bool, Any]] = [(True, None)]
        if self.is_coordinator:
            try:
                told = [(True, decision())]
            except Exception as error:
                told = [(False, error if isinstance(error, DcpCloudError) else plain_error(error, "the manager"))]
        source = dist.get_global_rank(self.group, 0) if self.group is not None else 0
        dist.broadcast_object_list(told, src=source, group=self.group)
        succeeded, value = told[0]
        if not succeeded:
            raise value
        return cast("T", value)

    def gather(self, value: T) -> list[T]:
        """Learn a value of every rank.

        Args:
            value: This rank's.

        Returns:
            Those of all ranks, by rank.
        """
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values


def plain_error(error: BaseException, what: str) -> BaseException:
    """Take this package's error out of what torch wraps around the errors of all ranks.

    Args:
        error: What torch raised, or anything else.
        what: What failed, for the message.

    Returns:
        An error of this package; what is no error but an order to end (Ctrl-C) is returned as it is.
    """
    causes = list(_failures(error))
    if not all(isinstance(cause, Exception) for cause in causes):
        return error
    own = [cause for cause in causes if isinstance(cause, DcpCloudError)]
    # A rank that was cancelled because of another one says the least.
    own.sort(key=lambda cause: isinstance(cause, TransferCancelledError))
    return own[0] if own else CheckpointError(f"{what} failed", cause=causes[0])


def _failures(error: BaseException) -> list[BaseException]:
    if not isinstance(error, CheckpointException):
        return [error]
    return [cause for _, (cause, _) in sorted(error.failures.items())] or [error]
