"""Several ranks with torch's experimental checkpointers: one commit for all, errors for all, background saves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint._experimental import DefaultStager, RankInfo
from torch.distributed.checkpoint._experimental.checkpoint_process import CheckpointProcessConfig
from torch.distributed.checkpoint._experimental.staging import CheckpointStagerConfig
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import (
    CloudAsyncCheckpointer,
    CloudCheckpointReader,
    CloudSyncCheckpointer,
    StoreURI,
    make_cloud_async_checkpointer,
    open_store,
)
from dcp_cloud.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    DcpCloudError,
    IncompleteCheckpointError,
)
from dcp_cloud.experimental import CloudCheckpointProcess, CloudCheckpointWriter
from dcp_cloud.testing import Fault, FaultyStore
from tests.checkpoint.conftest import every_cloud
from tests.checkpoint.states import equal
from tests.experimental import jobs
from tests.support.ranks import run_ranks
from tests.unit.transfer.tools import wait_until

Place = Callable[..., str]


def read(uri: str, rank: int) -> dict:
    return CloudCheckpointReader(RankInfo(global_rank=rank, global_world_size=2)).read(uri)[0]


@every_cloud
def test_ranks_save_and_load_their_own(place: Place) -> None:
    """Two ranks save and load, whole and in part, on each provider; one loads alone; a third finds nothing."""
    uri = place()
    assert run_ranks(2, jobs.save_and_load, uri, 1) == [[], []]
    assert sorted(meta.key for meta in open_store(uri).list()) == [
        "checkpoint.json",
        "checkpoint_0.pt",
        "checkpoint_1.pt",
    ]
    assert run_ranks(1, jobs.load, uri) == ["rank 0"]
    with pytest.raises(CheckpointNotFoundError, match="saved by 2 ranks"):
        read(uri, 2)


def test_a_failure_of_one_rank_is_heard_by_all(place: Place) -> None:
    """No rank is told of a success, nothing is committed, and nobody can load a part of it."""
    uri = place()
    fault = {"kind": "refuse", "verb": "put_part"}
    outcomes = run_ranks(2, jobs.save_with_fault, uri, 1, fault)
    assert outcomes == ["IncompleteCheckpointError", "PermissionDeniedError"]
    assert run_ranks(2, jobs.load, uri) == ["IncompleteCheckpointError", "CheckpointNotFoundError"]


def test_equal_shards_of_different_tensors_are_not_mixed_up(tmp_path: Path) -> None:
    """A DTensor has to be the same whole tensor, parted the same way."""
    outcomes = run_ranks(1, jobs.load_into_other_layouts, f"file://{tmp_path}")
    assert outcomes == [["ok", *["StateDictMismatchError"] * 3]]


def test_hooks_are_called_in_torchs_order(place: Place) -> None:
    """Write, pre_commit, barrier, commit, post_commit, with the arguments of save."""
    seen = run_ranks(2, jobs.save_with_hook, place())
    for rank, ((before, files, arguments), (after, committed, same_arguments)) in enumerate(seen):
        assert (before, after) == ("pre", "post")
        assert f"checkpoint_{rank}.pt" in files
        assert "checkpoint.json" not in files
        assert committed == ["checkpoint.json", "checkpoint_0.pt", "checkpoint_1.pt"]
        assert arguments == same_arguments == {"step": 3}


def test_background_saves_get_over_errors(place: Place) -> None:
    """The process survives a missing bucket and a hook that refuses; the saves before and after are whole."""
    uris = [place(), place(), place()]
    missing = uris[0].replace(StoreURI.parse(uris[0]).bucket, "no-such-bucket-anywhere")
    outcomes = run_ranks(2, jobs.background_saves, uris, missing, timeout_s=150)
    expected = ["ok", "BucketNotFoundError", "DcpCloudError", "ok", "equal", "equal"]
    assert outcomes == [expected, expected]
    with pytest.raises(IncompleteCheckpointError):
        read(uris[1], 0)


def test_a_save_to_the_same_path_is_refused_until_it_is_whole(tmp_path: Path) -> None:
    """A rank that has replaced its file alone makes the checkpoint incomplete, and never a mixture of two saves."""
    uri = f"file://{tmp_path}"
    _save_both(uri, "first", seed=1)
    assert [read(uri, rank)["step"] for rank in (0, 1)] == [1, 1]
    with pytest.raises(IncompleteCheckpointError, match="did not come"):
        jobs.writer(uri, 0, 2, "second").write(uri, jobs.state(0, 2))
    with pytest.raises(IncompleteCheckpointError, match="another save"):
        read(uri, 0)
    assert read(uri, 1)["step"] == 1
    _save_both(uri, "third", seed=3)
    assert [read(uri, rank)["step"] for rank in (0, 1)] == [3, 3]
    assert not (tmp_path / "marks").exists()


def _save_both(uri: str, run_id: str, seed: int) -> None:
    """Let two imagined ranks save at the same time."""
    with ThreadPoolExecutor(2) as pool:
        saves = [
            pool.submit(jobs.writer(uri, rank, 2, run_id, timeout_s=60).write, uri, jobs.state(rank, seed))
            for rank in (0, 1)
        ]
    for save in saves:
        save.result()


def test_a_rank_that_gave_up_is_heard(tmp_path: Path) -> None:
    """If one rank could not wait for the commit and raised, the first one does not call the save a success."""
    uri = f"file://{tmp_path}"
    with pytest.raises(IncompleteCheckpointError, match="the first rank"):
        jobs.writer(uri, 1, 2).write(uri, jobs.state(1))
    with pytest.raises(IncompleteCheckpointError, match="rank 1 failed"):
        jobs.writer(uri, 0, 2).write(uri, jobs.state(0))
    with pytest.raises(IncompleteCheckpointError):
        read(uri, 1)


def test_ranks_need_a_way_to_agree() -> None:
    """Several ranks without a process group and without a run_id are told what to do."""
    with pytest.raises(ConfigError, match="run_id"):
        CloudCheckpointWriter(jobs.CheckpointWriterConfig(), RankInfo(global_rank=0, global_world_size=2))


def failing_checkpointer() -> CloudAsyncCheckpointer:
    process = CloudCheckpointProcess(
        RankInfo(global_rank=0, global_world_size=1),
        CheckpointProcessConfig(subprocess_init_timeout_secs=120),
        jobs.make_failing_later,
        (),
        jobs.make_failing_later,
        {},
    )
    stager = DefaultStager(
        CheckpointStagerConfig(use_pinned_memory=False, use_async_staging=False, use_non_blocking_copy=False)
    )
    reader = CloudCheckpointReader(RankInfo(global_rank=0, global_world_size=1))
    return CloudAsyncCheckpointer(checkpoint_stager=stager, checkpoint_process=process, reader=reader)


def test_an_error_nobody_asked_for_is_raised_by_the_next_save(tmp_path: Path) -> None:
    """A future that fails after ``write`` returned is no success; its error comes up once, not for ever."""
    checkpointer = failing_checkpointer()
    checkpointer.save(f"file://{tmp_path}/1", {"a": torch.ones(2)})
    with pytest.raises(OSError, match="full"):
        checkpointer.save(f"file://{tmp_path}/2", {"a": torch.ones(2)})
    _, written = checkpointer.save(f"file://{tmp_path}/3", {"a": torch.ones(2)})
    with pytest.raises(OSError, match="full"):
        written.result()
    _, written = checkpointer.save(f"file://{tmp_path}/4", {"a": torch.ones(2)})
    assert isinstance(written.exception(), OSError)
    os.kill(checkpointer._checkpoint_process.process.processes[0].pid, signal.SIGKILL)
    _, written = checkpointer.save(f"file://{tmp_path}/5", {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="has ended"):
        written.result()
    checkpointer.close()


def test_an_error_nobody_asked_for_is_raised_by_close(tmp_path: Path) -> None:
    """There is no next save to tell it; what was open is closed all the same, and a second close has nothing to say."""
    checkpointer = failing_checkpointer()
    checkpointer.save(f"file://{tmp_path}/1", {"a": torch.ones(2)})
    with pytest.raises(OSError, match="full"):
        checkpointer.close()
    assert not checkpointer._checkpoint_process.process.processes[0].is_alive()
    checkpointer.close()


@every_cloud
def test_errors_of_any_kind_and_close_lose_no_save(place: Place) -> None:
    """The process survives an error longer than a pipe, and torch's, which is no Exception; close waits for a save."""
    checkpointer = make_cloud_async_checkpointer(commit_hook=jobs.Picky())
    uri, outcomes = place("last"), []
    for options in ({"long": True}, {"torch": True}):
        _, written = checkpointer.save(place(), {"a": torch.ones(2)}, **options)
        outcomes.append(written.exception(timeout=60))
    may_go_on = threading.Event()
    checkpointer._checkpoint_process._executor.submit(may_go_on.wait)  # the save stands in line behind this
    _, written = checkpointer.save(uri, jobs.state(0))
    closing = threading.Thread(target=checkpointer.close, daemon=True)
    closing.start()
    wait_until(lambda: checkpointer._write_future is None or not closing.is_alive(), "close has begun")
    may_go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    long, torchs = outcomes
    assert type(long) is DcpCloudError
    assert "ValueError: nono" in str(long)
    assert len(str(long)) < 10_000
    assert isinstance(torchs, CheckpointException)
    assert written.result(timeout=1) is None
    loaded = CloudCheckpointReader(RankInfo(global_rank=0, global_world_size=1)).read(uri)[0]
    assert equal(loaded, jobs.state(0))


def test_a_checkpointer_that_does_not_go_on_meanwhile_waits_for_a_writers_future(tmp_path: Path) -> None:
    """A pending future is no success yet, and its failure is one of the save."""
    reader = CloudCheckpointReader(RankInfo(global_rank=0, global_world_size=1))
    later = jobs.WritingLater()
    CloudSyncCheckpointer(writer=later, reader=reader).save("memory://x/1", {"a": 1})  # type: ignore[arg-type]
    assert later.written == ["memory://x/1"]
    with pytest.raises(OSError, match="full"):
        CloudSyncCheckpointer(writer=jobs.FailingLater(), reader=reader).save("memory://x/1", {})  # type: ignore[arg-type]


def test_a_commit_stays_one_when_its_marks_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint is whole once its manifest is there: no rank is told of a failure afterwards."""
    uri = f"file://{tmp_path}"
    refusing = FaultyStore(open_store(uri), faults=[Fault(kind="refuse", verb="delete", times=100)])
    with ThreadPoolExecutor(2) as pool:
        saves = [
            pool.submit(jobs.writer(uri, rank, 2, timeout_s=60, **settings).write, uri, jobs.state(rank))
            for rank, settings in ((0, {"store": refusing}), (1, {}))
        ]
    assert [save.exception() for save in saves] == [None, None]
    assert [read(uri, rank)["name"] for rank in (0, 1)] == ["rank 0", "rank 1"]
    assert list(tmp_path.glob("marks/*/failed/*")) == []
    assert "marks of the save stay" in caplog.text
