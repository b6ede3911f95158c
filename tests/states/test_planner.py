"""The planner that opens values with an allow-list, beside torch's, which runs what they say."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudLoadPlanner, CloudStorageReader, CloudStorageWriter
from dcp_cloud.errors import UnsafeCheckpointError
from tests.checkpoint.states import equal, training_state, zeros_like


class Note:
    """A class of a user."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Note) and other.text == self.text

    __hash__ = None  # type: ignore[assignment]


class Gadget:
    """Makes a directory when it is opened.

    Args:
        path: Which.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def _failure(caught: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    return caught.value.failures[0][0]


@pytest.mark.parametrize("flatten", [True, False])
def test_a_training_state_needs_no_exceptions(tmp_path: Path, *, flatten: bool) -> None:
    """Model, AdamW, scheduler and values load with an empty list, through our reader and through torch's."""
    saved = training_state(1)
    saved["counts"] = collections.OrderedDict(a=1)
    if not flatten:
        del saved["optim"]  # torch's planner saves the numbers of its parameters as texts then
    planner = dcp.DefaultSavePlanner(flatten_state_dict=flatten)
    dcp.save(saved, storage_writer=CloudStorageWriter(f"file://{tmp_path}"), planner=planner)
    for reader in (CloudStorageReader(f"file://{tmp_path}"), FileSystemReader(tmp_path)):
        state = zeros_like(saved) if flatten else dict.fromkeys(saved, 0) | {"rng": torch.zeros_like(saved["rng"])}
        # torch's planner leaves values of a state dict that is not flattened in a copy, unless both are switched off.
        options = {"flatten_state_dict": flatten, "flatten_sharded_tensors": flatten}
        dcp.load(state, storage_reader=reader, planner=CloudLoadPlanner(**options, safe_globals=[]))
        assert equal(state, saved)


def test_a_type_of_ones_own_has_to_be_allowed(tmp_path: Path) -> None:
    """What is not on the list is a typed error that names it; on the list it loads, and the list is forgotten again."""
    dcp.save({"note": Note("hello")}, storage_writer=FileSystemWriter(tmp_path))
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"note": None}, storage_reader=FileSystemReader(tmp_path), planner=CloudLoadPlanner(safe_globals=[]))
    assert isinstance(_failure(caught), UnsafeCheckpointError)
    assert "Note" in str(_failure(caught))
    state = {"note": None}
    planner = CloudLoadPlanner(safe_globals=[Note])
    dcp.load(state, storage_reader=FileSystemReader(tmp_path), planner=planner)
    assert state == {"note": Note("hello")}
    assert Note not in torch.serialization.get_safe_globals()


def test_hostile_values_do_nothing(tmp_path: Path) -> None:
    """A value that calls a function is refused even through torch's reader; torch's planner would have called it."""
    target = tmp_path / "made"
    dcp.save({"gadget": Gadget(str(target))}, storage_writer=FileSystemWriter(tmp_path / "checkpoint"))
    reader = FileSystemReader(tmp_path / "checkpoint")
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"gadget": 0}, storage_reader=reader, planner=CloudLoadPlanner(safe_globals=[]))
    assert isinstance(_failure(caught), UnsafeCheckpointError)
    assert not target.exists()
    dcp.load({"gadget": 0}, storage_reader=reader)
    assert target.exists()
