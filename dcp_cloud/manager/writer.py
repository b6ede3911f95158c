"""The writer of one save of a manager: it notes step and metrics in the commit, and waits for its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import StorageMeta

from dcp_cloud.checkpoint.location import URILike
from dcp_cloud.checkpoint.writer import CloudStorageWriter
from dcp_cloud.manager.notes import attach_notes


class StepWriter(CloudStorageWriter):
    """Saves one step.

    Args:
        uri: Where the step goes.
        step: The step.
        metrics: Its checked metrics.
        turn: Waits until the saves before this one have ended; called before anything is sent to other ranks or to
            the store. It stays behind when the writer goes to another process, which takes saves one by one.
        **settings: Those of :class:`CloudStorageWriter`.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        step: int,
        metrics: Mapping[str, float],
        turn: Callable[[], None] | None = None,
        **settings: Any,  # noqa: ANN401 - the arguments of the base class
    ) -> None:
        super().__init__(uri, **settings)
        self._step = step
        self._metrics = dict(metrics)
        self._wait_for_turn = turn
        self._is_given_up = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_wait_for_turn": None}

    def reset(self, checkpoint_id: URILike | None = None) -> None:
        """Begin the save when it is its turn.

        Args:
            checkpoint_id: Where the writer is already.
        """
        if self._wait_for_turn is not None:
            self._wait_for_turn()
        super().reset(checkpoint_id)
        if self._is_given_up:
            super().cancel()

    def cancel(self) -> None:
        """Give up the save, whether it has begun or still waits for its turn."""
        self._is_given_up = True
        super().cancel()

    def _describe_save(self, save_id: str) -> StorageMeta:
        meta = super()._describe_save(save_id)
        attach_notes(meta, step=self._step, metrics=self._metrics)
        return meta
