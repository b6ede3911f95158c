"""A load planner that tells all that is wrong with a state dict at once, and can open values without running code."""

from __future__ import annotations

import difflib
import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem

from dcp_cloud.errors import CorruptCheckpointError, StateDictMismatchError, UnsafeCheckpointError

_SHOWN = 5
# How an object that stands for a tensor tells torch what it wants of it.
_CHUNKS = "__create_chunk_list__"


class CloudLoadPlanner(DefaultLoadPlanner):
    """torch's default load planner with a better answer to a state dict that does not fit.

    torch stops at the first difference with a ``RuntimeError`` or ``ValueError``. This planner then compares all names,
    kinds and shapes and raises one :class:`~dcp_cloud.errors.StateDictMismatchError` that lists what differs, with the
    names in the checkpoint that are nearest to the missing ones.

    Args:
        *args: For torch's planner.
        safe_globals: Open values that are no tensors with ``torch.load(weights_only=True)``, allowing these types
            besides; an empty list allows none. By default torch's planner opens them without restriction;
            :class:`~dcp_cloud.CloudStorageReader` looks into them first, torch's own readers do not.
        **kwargs: For torch's planner: ``flatten_state_dict``, ``flatten_sharded_tensors``, ``allow_partial_load``.
    """

    def __init__(self, *args: Any, safe_globals: Sequence[Any] | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._safe_globals = None if safe_globals is None else tuple(safe_globals)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take a value that is no tensor.

        Args:
            read_item: Which one.
            value: What ``torch.save`` made of it.

        Raises:
            UnsafeCheckpointError: It names a type that is not allowed; only with ``safe_globals``.
            CorruptCheckpointError: It cannot be opened; only with ``safe_globals``.
        """
        if self._safe_globals is None:
            super().load_bytes(read_item, value)
            return
        fqn = read_item.dest_index.fqn
        opened = _open_safely(value, self._safe_globals, fqn)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[fqn], opened)
        else:
            self.state_dict[fqn] = opened

    def create_local_plan(self) -> LoadPlan:
        """Plan this rank's load.

        Returns:
            The plan.

        Raises:
            StateDictMismatchError: Names are missing in the checkpoint, shapes differ, or a tensor is in the place of a
                value.
        """
        try:
            # First of all, since torch recognises the names of old checkpoints by itself.
            return super().create_local_plan()
        except (RuntimeError, ValueError) as error:
            missing, differing = self._missing(), self._differing()
            if not (missing or differing):
                raise
            problems = [self._describe_missing(fqn) for fqn in missing[:_SHOWN]] + differing
            more = len(missing) + len(differing) - _SHOWN
            raise StateDictMismatchError(
                f"{len(missing) + len(differing)} of {len(self.state_dict)} entries of the state dict do not fit the "
                "checkpoint",
                key=self._place(),
                cause="; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
                hint="'dcp-cloud inspect' shows what the checkpoint holds; allow_partial_load=True skips missing names",
            ) from error

    def _missing(self) -> list[str]:
        assert self.metadata is not None  # noqa: S101 - torch sets the planner up first
        if getattr(self, "allow_partial_load", False):
            return []
        return [fqn for fqn in self.state_dict if fqn not in self.metadata.state_dict_metadata]

    def _describe_missing(self, fqn: str) -> str:
        assert self.metadata is not None  # noqa: S101 - torch sets the planner up first
        near = difflib.get_close_matches(fqn, self.metadata.state_dict_metadata, n=1)
        return f"{fqn!r} is not in the checkpoint" + (f" (but {near[0]!r} is)" if near else "")

    def _place(self) -> str | None:
        place = getattr(getattr(self.metadata, "storage_meta", None), "checkpoint_id", None)
        return None if place is None else str(place)

    def _differing(self) -> list[str]:
        assert self.metadata is not None  # noqa: S101 - torch sets the planner up first
        problems = []
        for fqn, value in self.state_dict.items():
            entry, size = self.metadata.state_dict_metadata.get(fqn), _size(value)
            if not isinstance(entry, TensorStorageMetadata):
                continue  # torch puts a value wherever one was saved
            if size is None:
                if not hasattr(value, _CHUNKS):
                    problems.append(f"{fqn!r} is a tensor in the checkpoint and of type {type(value).__name__} here")
            elif tuple(entry.size) != size:
                problems.append(f"{fqn!r} is {list(entry.size)} in the checkpoint and {list(size)} here")
        return problems


def _open_safely(value: io.BytesIO, safe_globals: Sequence[Any], name: str) -> object:
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            return torch.load(value, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"the value {name!r} names a type that is not allowed",
            cause=error,
            hint="if you trust the checkpoint, add the type to safe_globals",
        ) from error
    except Exception as error:  # whatever torch trips over in foreign bytes
        raise CorruptCheckpointError(
            f"the value {name!r} cannot be opened", cause=error, hint="load another checkpoint"
        ) from error


def _size(value: object) -> tuple[int, ...] | None:
    """Give the size to compare: of a part that stands for a larger tensor (torch 2.14) that of the larger one."""
    whole, size = getattr(value, "global_shape", None), getattr(value, "size", None)
    if whole is None and callable(size):
        whole = size()
    return None if whole is None else tuple(whole)
