"""A save that returns has stored everything; one that fails says so, leaves nothing, and costs no earlier checkpoint.

The same trouble is put to torch's own writers, as a contrast: where they are known to lose data, the test says so and
demands nothing of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, open_store
from tests.checkpoint import truth_jobs
from tests.support.ranks import RankError, run_ranks

Place = Callable[..., str]

# Said by torch 2.6 of its own writers; as an error it would be one that is heard of.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


def contrast(reason: str, *kinds: str) -> pytest.MarkDecorator:
    """Run a test for this package, and for torch's writers, which are known to fail it."""
    theirs = [pytest.param(kind, marks=pytest.mark.xfail(strict=True, reason=reason)) for kind in kinds or ("torch",)]
    return pytest.mark.parametrize("kind", ["ours", *theirs])


@pytest.fixture
def where(request: pytest.FixtureRequest, place: Place, tmp_path: Path) -> str:
    """Give a place for the writer that a test is run with."""
    return place() if request.getfixturevalue("kind") == "ours" else str(tmp_path / "theirs")


def keys(uri: str) -> set[str]:
    return {meta.key for meta in open_store(uri).list()}


def assert_nothing_is_left(uri: str, before: set[str]) -> None:
    assert keys(uri) == before
    assert not list(open_store(uri).list_multiparts())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@contrast("errors of helper threads are lost: pytorch/pytorch#191391", "torch", "fsspec")
def test_an_error_in_a_helper_thread_fails_the_save(where: str, kind: str) -> None:
    """With several threads at work, an upload that fails in one of them fails the save."""
    if kind == "fsspec":
        pytest.importorskip("fsspec")
    if kind == "ours":
        store = truth_jobs.RefusesHelpers(open_store(where))
        raised = truth_jobs.save(kind, where, 1.0, truth_jobs.FailInHelpers(), store=store)
        assert raised == ["PermissionDeniedError"]
        assert all(name.startswith("dcp_cloud-upload") for name in store.threads)
        assert len(store.threads) > 1
        assert_nothing_is_left(where, set())
    else:
        assert truth_jobs.save(kind, where, 1.0, truth_jobs.FailInHelpers()) != []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore:Detected an existing")
@contrast("data files are overwritten before .metadata is, and errors of helper threads are lost", "torch", "fsspec")
def test_an_exception_in_mid_write_leaves_the_earlier_checkpoint(where: str, kind: str) -> None:
    """A save that fails half way, over an earlier one: the caller hears of it and the earlier one is what is loaded."""
    if kind == "fsspec":
        pytest.importorskip("fsspec")
    assert truth_jobs.save(kind, where, 1.0) == []
    before = keys(where) if kind == "ours" else set()
    assert truth_jobs.save(kind, where, 2.0, truth_jobs.RaiseAfter()) == ["RuntimeError"]
    assert truth_jobs.loaded(kind, where) == truth_jobs.expected(1.0)
    if kind == "ours":
        assert_nothing_is_left(where, before)


@pytest.mark.parametrize("place", ["file", "ceph"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "moment", "survivor"),
    [
        ("ours", "data", 1.0),
        ("ours", "complete before", 1.0),
        ("ours", "complete after", 1.0),
        ("ours", "commit before", 1.0),
        ("ours", "commit after", 2.0),
        pytest.param(
            "torch",
            "commit before",
            1.0,
            marks=pytest.mark.xfail(strict=True, reason="data files are overwritten before .metadata is"),
        ),
    ],
)
def test_kill_9_at_any_moment_leaves_one_whole_checkpoint(where: str, kind: str, moment: str, survivor: float) -> None:
    """A process that is killed in the middle of an overwrite leaves the old checkpoint or the new one, never parts."""
    assert truth_jobs.save(kind, where, 1.0) == []
    with pytest.raises(RankError, match="without a result"):
        run_ranks(1, truth_jobs.save_and_be_killed, kind, where, 2.0, moment)
    assert truth_jobs.loaded(kind, where) == truth_jobs.expected(survivor)
    if kind == "ours":
        assert truth_jobs.save(kind, where, 3.0) == []
        assert truth_jobs.loaded(kind, where) == truth_jobs.expected(3.0)


@pytest.mark.parametrize("place", ["file", "ceph"], indirect=True)
@pytest.mark.parametrize(("verb", "nth"), [("create_multipart", 1), ("put_part", 1), ("put_part", 4), ("complete", 1)])
@pytest.mark.parametrize("had", [True, False])
def test_ctrl_c_in_mid_save_leaves_no_upload_and_no_object(place: Place, verb: str, nth: int, had: bool) -> None:
    """SIGINT while data is sent: KeyboardInterrupt, no thread, no upload and no object left; the old one is whole."""
    uri = place()
    if had:
        assert truth_jobs.save("ours", uri, 1.0) == []
    before = keys(uri)
    assert run_ranks(1, truth_jobs.save_and_be_interrupted, uri, 2.0, verb, nth) == [["KeyboardInterrupt"]]
    assert_nothing_is_left(uri, before)
    if had:
        assert truth_jobs.loaded("ours", uri) == truth_jobs.expected(1.0)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_success_names_every_planned_item(place: Place) -> None:
    """A save that returns has a record for each item of its plan, and each record has its object."""
    uri = place()
    planned: list[int] = []

    class Counting(dcp.DefaultSavePlanner):
        def finish_plan(self, new_plan: dcp.SavePlan) -> dcp.SavePlan:
            planned.append(len(new_plan.items))
            return super().finish_plan(new_plan)

    assert truth_jobs.save("ours", uri, 1.0, Counting()) == []
    stored = CloudStorageReader(uri).read_metadata().storage_data
    assert len(stored) == planned[0] == truth_jobs.ITEMS
    assert {info.relative_path for info in stored.values()} | {".metadata"} == keys(uri)


@pytest.mark.skipif("no_dist" not in inspect.signature(dcp.save).parameters, reason="dcp.save has it from torch 2.7 on")
@pytest.mark.parametrize("place", ["file", "ceph"], indirect=True)
def test_processes_that_do_not_know_of_each_other_do_not_mix(place: Place) -> None:
    """Of jobs that save to one place at once, each is told a success or a conflict; what is loaded is one of theirs."""
    uri = place()
    outcomes = run_ranks(3, truth_jobs.save_alone, uri)
    assert all(raised in ([], ["CommitConflictError"]) for raised, _ in outcomes)
    winners = [truth_jobs.expected(value) for raised, value in outcomes if not raised]
    assert truth_jobs.loaded("ours", uri) in winners
    named = {info.relative_path for info in CloudStorageReader(uri).read_metadata().storage_data.values()}
    assert keys(uri) == named | {".metadata"}


def test_a_planner_may_give_dtensors(place: Place) -> None:
    """A planner that resolves to a DTensor instead of its local part saves the local part."""
    uri = place()
    run_ranks(2, truth_jobs.save_dtensors, uri)
    loaded = {"rows": torch.zeros(1200, 1000), "columns": torch.zeros(1200, 1000)}
    dcp.load(loaded, storage_reader=CloudStorageReader(uri))
    whole = torch.arange(1_200_000.0).view(1200, 1000)
    assert torch.equal(loaded["rows"], whole)
    assert torch.equal(loaded["columns"], whole)
