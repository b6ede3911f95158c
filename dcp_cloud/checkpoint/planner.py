"""A load planner that says everything that is wrong with a state dict at once, as a typed error."""

from __future__ import annotations

import difflib

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan

from dcp_cloud.errors import StateDictMismatchError

_SHOWN = 5


class CloudLoadPlanner(DefaultLoadPlanner):
    """torch's default load planner with a better answer to a state dict that does not fit.

    torch stops at the first difference with a ``RuntimeError`` or ``ValueError``. This planner compares all names and
    shapes first and raises one :class:`~dcp_cloud.errors.StateDictMismatchError` that lists them, with the names in the
    checkpoint that are nearest to the missing ones.
    """

    def create_local_plan(self) -> LoadPlan:
        """Plan this rank's load.

        Returns:
            The plan.

        Raises:
            StateDictMismatchError: Names are missing in the checkpoint, or shapes differ.
        """
        problems = [*self._missing(), *self._reshaped()]
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise StateDictMismatchError(
                f"{len(problems)} of {len(self.state_dict)} entries of the state dict do not fit the checkpoint",
                cause=shown + more,
                hint="'dcp-cloud inspect' shows what the checkpoint holds; allow_partial_load=True skips missing names",
            )
        return super().create_local_plan()

    def _missing(self) -> list[str]:
        assert self.metadata is not None  # noqa: S101 - torch sets the planner up first
        if getattr(self, "allow_partial_load", False):
            return []
        known = self.metadata.state_dict_metadata
        problems = []
        for fqn in self.state_dict:
            if fqn not in known:
                near = difflib.get_close_matches(fqn, known, n=1)
                problems.append(f"{fqn!r} is not in the checkpoint" + (f" (but {near[0]!r} is)" if near else ""))
        return problems

    def _reshaped(self) -> list[str]:
        assert self.metadata is not None  # noqa: S101 - torch sets the planner up first
        problems = []
        for fqn, value in self.state_dict.items():
            entry, size = self.metadata.state_dict_metadata.get(fqn), getattr(value, "size", None)
            if isinstance(entry, TensorStorageMetadata) and callable(size) and tuple(entry.size) != tuple(size()):
                problems.append(f"{fqn!r} is {list(entry.size)} in the checkpoint and {list(size())} here")
        return problems
