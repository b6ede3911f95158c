"""The commit: one atomic write, last; the checkpoint before it stays whole until then."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.errors import CheckpointExistsError, CommitConflictError, DcpCloudError
from tests.checkpoint.conftest import every_store
from tests.checkpoint.states import equal, zeros_like
from tests.checkpoint.test_round_trip import load, save

Place = Callable[..., str]


def keys(uri: str) -> set[str]:
    return {meta.key for meta in open_store(uri).list()}


def failure(error: CheckpointException) -> BaseException:
    """Give the error of the first rank that failed."""
    return next(iter(error.failures.values()))[0]


@every_store
def test_overwriting_replaces_whole_and_leaves_no_orphans(place: Place) -> None:
    """After a second save only its objects are left, under new names."""
    uri = place()
    save({"w": torch.ones(1000), "n": 1}, uri)
    before = keys(uri)
    save({"w": torch.zeros(1000), "n": 2}, uri)
    after = keys(uri)
    assert before & after == {".metadata"}
    assert len(after) == 2
    loaded = {"w": torch.ones(1000), "n": 0}
    load(loaded, uri)
    assert loaded["n"] == 2
    assert not loaded["w"].any()


@every_store
def test_overwrite_false_refuses_before_sending_anything(place: Place) -> None:
    """With overwrite=False a committed checkpoint is neither replaced nor added to."""
    uri = place()
    save({"w": torch.ones(1000)}, uri)
    before = keys(uri)
    with pytest.raises(CheckpointException) as caught:
        save({"w": torch.zeros(1000)}, uri, overwrite=False)
    assert isinstance(failure(caught.value), CheckpointExistsError)
    assert keys(uri) == before


class _CommitsMeanwhile(dcp.DefaultSavePlanner):
    """A planner that lets another job save to the same place while its own save is under way."""

    def __init__(self, uri: str, state: dict) -> None:
        super().__init__()
        self._other = (state, uri)

    def finish_plan(self, plan: dcp.SavePlan) -> dcp.SavePlan:
        save(*self._other)
        return super().finish_plan(plan)


@every_store
@pytest.mark.parametrize(
    ("overwrite", "had_checkpoint", "expected"),
    [
        (True, False, CommitConflictError),
        (True, True, CommitConflictError),
        # With a checkpoint there already, overwrite=False is refused at the start: see the test above.
        (False, False, CheckpointExistsError),
    ],
)
def test_of_two_jobs_one_commits_and_the_other_hears_of_it(
    place: Place, overwrite: bool, had_checkpoint: bool, expected: type[DcpCloudError]
) -> None:
    """A job that was overtaken raises a typed error, and the winner's checkpoint is whole and alone."""
    uri, winner = place(), {"w": torch.full((500,), 7.0)}
    if had_checkpoint:
        save({"w": torch.zeros(500)}, uri)
    with pytest.raises(CheckpointException) as caught:
        dcp.save(
            {"w": torch.ones(500)},
            storage_writer=CloudStorageWriter(uri, overwrite=overwrite),
            planner=_CommitsMeanwhile(uri, winner),
        )
    assert isinstance(failure(caught.value), expected)
    loaded = zeros_like(winner)
    load(loaded, uri)
    assert equal(loaded, winner)
    assert len(keys(uri)) == 2


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_only_objects_of_the_replaced_checkpoint_are_deleted(place: Place) -> None:
    """Whatever else lies under the prefix stays: notes, nested checkpoints, names that a forged commit lists."""
    uri = place("run")
    store = open_store(uri)
    save({"w": torch.ones(10)}, uri)
    store.put("notes.txt", [memoryview(b"mine")])
    save({"w": torch.ones(10)}, f"{uri}/nested")
    nested = keys(f"{uri}/nested")
    save({"w": torch.ones(10)}, uri)
    assert {f"nested/{key}" for key in nested} | {"notes.txt"} < keys(uri)
    load({"w": torch.zeros(10)}, f"{uri}/nested")


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_forged_commit_does_not_choose_what_is_deleted(place: Place) -> None:
    """Names that leave the prefix, the commit itself and foreign objects survive the replacing of a forged commit."""
    uri = place("run")
    store = open_store(uri)
    save({"w": torch.ones(10)}, uri)
    metadata = CloudStorageReader(uri).read_metadata()
    for name in (".metadata", "notes.txt", "nested/__0_0.distcp"):
        store.put(name, [memoryview(b"x")]) if name != ".metadata" else None
        for info in metadata.storage_data.values():
            info.relative_path = name
        from dcp_cloud.format.metadata import dump_metadata

        store.put(".metadata", [memoryview(dump_metadata(metadata))])
        save({"w": torch.ones(10)}, uri)
        assert {".metadata", name} <= keys(uri)
    load({"w": torch.zeros(10)}, uri)


@pytest.mark.skipif(
    "enable_plan_caching" not in inspect.signature(dcp.DefaultSavePlanner).parameters,
    reason="this torch has no plan caching (2.6 has none)",
)
@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_plan_caching_names_objects_anew(place: Place) -> None:
    """Saves with cached plans go to their own objects; each checkpoint holds its own values."""
    first, second = place(), place()
    writer = CloudStorageWriter(first)
    for value, uri in ((1.0, first), (2.0, second), (3.0, first)):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        dcp.save({"w": torch.full((100,), value)}, storage_writer=writer, checkpoint_id=uri, planner=planner)
    for value, uri in ((3.0, first), (2.0, second)):
        loaded = {"w": torch.zeros(100)}
        load(loaded, uri)
        assert torch.equal(loaded["w"], torch.full((100,), value))
        assert len(keys(uri)) == 2
