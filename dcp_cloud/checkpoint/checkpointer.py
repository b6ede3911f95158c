"""torch's ``_Checkpointer`` with a ``save`` that works.

torch's own ``save`` passes ``coordinator_rank`` to a function that does not take it, and so raises ``TypeError`` (seen
in torch 2.6, 2.13, 2.14 and 2.15). Its other methods work with this package's classes as they are.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch.distributed.checkpoint._checkpointer import _Checkpointer
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from dcp_cloud.errors import ConfigError


class CloudCheckpointer(_Checkpointer):
    """Saves and loads with one writer and one reader, as torch's class means to.

    Takes the arguments of torch's class: ``storage_writer``, ``storage_reader``, ``process_group``,
    ``coordinator_rank`` (0 only), ``no_dist``, ``load_planner``, ``save_planner``.

    Raises:
        ConfigError: ``coordinator_rank`` is not 0; ``dcp.save`` knows no other. Or ``no_dist=True`` with torch 2.6.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - torch's own arguments
        super().__init__(*args, **kwargs)
        if self.coordinator_rank != 0:
            raise ConfigError(
                f"coordinator_rank={self.coordinator_rank} is not possible",
                cause="dcp.save always coordinates on rank 0 of the process group",
                hint="pass a process group whose first rank is the one you want",
            )
        if self.no_dist and "no_dist" not in inspect.signature(save).parameters:
            raise ConfigError(
                "no_dist=True is not possible with this version of torch",
                cause="dcp.save and dcp.load take it from torch 2.7 on",
                hint="update torch; without a process group it is not needed",
            )
        # Passed on only where it says something: a version that does not know it is served too.
        self._options = {"no_dist": True} if self.no_dist else {}

    def save(self, state_dict: dict[str, Any]) -> Metadata:
        """Save to where the writer is.

        Args:
            state_dict: What to save.

        Returns:
            The metadata of the checkpoint.

        Raises:
            CheckpointException: A rank failed; its ``failures`` hold the errors of this package.
        """
        metadata: Metadata = save(
            state_dict,
            storage_writer=self.storage_writer,
            planner=self.save_planner,
            process_group=self.process_group,
            **self._options,
        )
        return metadata

    def load(self, state_dict: dict[str, Any]) -> None:
        """Load from where the reader is.

        Args:
            state_dict: What to fill.

        Raises:
            CheckpointException: A rank failed; its ``failures`` hold the errors of this package.
        """
        load(
            state_dict,
            storage_reader=self.storage_reader,
            planner=self.load_planner,
            process_group=self.process_group,
            **self._options,
        )
