"""Removing checkpoints: the order, what stays, and that every interruption can be finished."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dcp_cloud.checkpoint.remove import plan_removal, remove_checkpoint
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.errors import CheckpointNotFoundError, CommitConflictError, InvalidRequestError, PermissionDeniedError
from dcp_cloud.stores.base import MultipartUpload, ObjectStore
from dcp_cloud.stores.local import LocalStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing import Fault, FaultyStore, RecordingStore, SimulatedCrash
from dcp_cloud.testing.wrappers import Request, StoreWrapper

ID = "0123456789abcdef" * 2
COMMITS = (".metadata",)
DATA = (f"__0_0.{ID}.distcp", f"__1_0.{ID}.distcp", "__0_0.distcp", "shard.distcp", ".metadata.tmp")
OTHERS = ("config.json", "metadata", "__notes.txt", f"sub/__0_0.{ID}.distcp", "step-2/.metadata", "step-2/log.txt")


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore(uuid.uuid4().hex)
    yield made
    made.delete([meta.key for meta in made.list()])


def put(store: ObjectStore, keys: Iterable[str]) -> None:
    for key in keys:
        store.put(key, [memoryview(key.encode())])


def keys(store: ObjectStore) -> set[str]:
    return {meta.key for meta in store.list()}


def open_uploads(store: ObjectStore) -> list[str]:
    return sorted(upload.key for upload in store.list_multiparts())


def test_only_the_checkpoint_goes(store: MemoryStore) -> None:
    """Commit and data directly below the place go; other files and everything in directories below stay."""
    put(store, (*COMMITS, *DATA, *OTHERS))
    removal = remove_checkpoint(store)
    assert keys(store) == set(OTHERS)
    assert [meta.key for meta in removal.commits] == [".metadata"]
    assert {meta.key for meta in removal.data} == set(DATA)
    assert removal.checkpoints == ("",)
    assert removal.kept_checkpoints == ("step-2",)
    assert removal.size_bytes == sum(map(len, (*COMMITS, *DATA)))


def test_recursive_removes_checkpoints_below_and_no_other_file(store: MemoryStore) -> None:
    """With ``recursive`` checkpoints at any depth go too; files of other kinds stay."""
    put(store, (*COMMITS, *DATA, *OTHERS, "a/b/__3.metadata"))
    removal = remove_checkpoint(store, recursive=True)
    assert keys(store) == {"config.json", "metadata", "__notes.txt", "step-2/log.txt"}
    assert removal.checkpoints == ("", "a/b", "step-2")


def test_rank_local_commits_go(store: MemoryStore) -> None:
    """A checkpoint that each rank has committed for itself is removed with all its commits."""
    put(store, ("__0.metadata", "__12.metadata", "__1.metadata.tmp", *DATA))
    remove_checkpoint(store)
    assert keys(store) == set()


def test_nothing_is_read(store: MemoryStore) -> None:
    """A removal goes by names alone, so a damaged or hostile commit is no obstacle and decides nothing."""
    put(store, (*COMMITS, *DATA))
    recording = RecordingStore(store)
    remove_checkpoint(recording)
    assert {call.verb for call in recording.calls} == {"list", "list_multiparts", "delete"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("recursive", [False, True])
def test_every_interruption_can_be_finished(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, when: str, recursive: bool
) -> None:
    """Wherever a removal breaks off, whatever has a commit is whole, and the next removal finishes it."""
    monkeypatch.setattr("dcp_cloud.checkpoint.cleanup._BATCH_KEYS", 1)
    nested = ("run/__0.metadata", f"run/__0_0.{ID}.distcp")
    nth, has_ended = 0, False
    while not has_ended:
        nth += 1
        put(store, (*COMMITS, *DATA, *nested, "config.json"))
        store.create_multipart(f"__2_0.{ID}.distcp")
        faulty = FaultyStore(store, [Fault("crash", nth=nth, when=when)])
        try:
            remove_checkpoint(faulty, recursive=recursive)
            has_ended = True
        except SimulatedCrash:
            for commit, data in ((".metadata", DATA), (nested[0], nested[1:])):
                assert commit not in keys(store) or keys(store) >= set(data)
        try:
            remove_checkpoint(store, recursive=recursive)
        except CheckpointNotFoundError:
            assert has_ended or when == "after"
        assert keys(store) == ({"config.json"} if recursive else {"config.json", *nested})
        assert open_uploads(store) == []
    assert nth > len(DATA) + 2


def test_all_commits_go_before_any_data(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a recursive removal no data is deleted while any commit is left: they might share it."""
    monkeypatch.setattr("dcp_cloud.checkpoint.cleanup._BATCH_KEYS", 1)
    put(store, (*COMMITS, *DATA, "z/.metadata", "z/__0_0.distcp"))
    recording = RecordingStore(store)
    remove_checkpoint(recording, recursive=True)
    deleted = [call.key for call in recording.calls if call.verb == "delete"]
    assert sorted(deleted[:2]) == [".metadata", "z/.metadata"]
    assert len(deleted) == 3 + len(DATA)


def test_a_commit_since_the_plan_stops_the_removal(store: MemoryStore) -> None:
    """What somebody agreed to remove is removed, not what a job has committed in the meantime."""
    put(store, (*COMMITS, *DATA))
    planned = plan_removal(store)
    put(store, [".metadata"])
    with pytest.raises(CommitConflictError, match="nothing was deleted"):
        remove_checkpoint(store, planned=planned)
    assert keys(store) == {*COMMITS, *DATA}


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_commit_after_the_last_look_stays(store: MemoryStore, is_planned: bool) -> None:
    """A commit is deleted only as the version that was seen: another job's, made after the last look, stays."""

    class Racing(StoreWrapper):
        def around(self, request: Request, run: Callable[[], Any]) -> Any:
            if request.verb == "delete" and request.key == ".metadata":
                put(store, [".metadata"])
            return run()

    put(store, (*COMMITS, *DATA))
    planned = plan_removal(store) if is_planned else None
    with pytest.raises(CommitConflictError, match="it stays"):
        remove_checkpoint(Racing(store), planned=planned)
    assert keys(store) == {*COMMITS, *DATA}


def test_a_server_that_refuses_the_condition_is_served(store: MemoryStore) -> None:
    """Where a conditional delete is not implemented, the commit goes after a look, as it did before there were any."""

    class Old(StoreWrapper):
        def around(self, request: Request, run: Callable[[], Any]) -> Any:
            return run()

        def delete(self, keys: Sequence[str], *, if_match: str | None = None) -> None:
            if if_match is not None:
                raise InvalidRequestError("delete failed", cause="NotImplemented (HTTP 501)")
            self.store.delete(keys)

    put(store, (*COMMITS, *DATA))
    remove_checkpoint(Old(store))
    assert keys(store) == set()


def test_only_what_was_planned_goes(store: MemoryStore) -> None:
    """Data that appeared after the plan stays, as does a checkpoint below that nobody meant."""
    put(store, (*COMMITS, *DATA))
    planned = plan_removal(store)
    put(store, ["__7_0.distcp", "below/.metadata"])
    remove_checkpoint(store, planned=planned)
    assert keys(store) == {"__7_0.distcp", "below/.metadata"}


def test_planning_changes_nothing(store: MemoryStore) -> None:
    """A plan is made without a single request that changes anything."""
    put(store, (*COMMITS, *DATA, *OTHERS))
    recording = RecordingStore(store)
    plan_removal(recording, recursive=True)
    assert {call.verb for call in recording.calls} == {"list", "list_multiparts"}


def test_unfinished_uploads_of_checkpoints_are_dropped(store: MemoryStore) -> None:
    """Uploads of data directly below are dropped, those below only with ``recursive``; other programs' ones stay."""
    for key in (f"__0_0.{ID}.distcp", f"below/__0_0.{ID}.distcp", "video.mp4", "below/video.mp4"):
        store.create_multipart(key)
    assert len(remove_checkpoint(store).uploads) == 1
    assert open_uploads(store) == [f"below/__0_0.{ID}.distcp", "below/video.mp4", "video.mp4"]
    assert len(remove_checkpoint(store, recursive=True).uploads) == 1
    assert open_uploads(store) == ["below/video.mp4", "video.mp4"]


def test_uploads_that_may_not_be_listed_are_no_obstacle(store: MemoryStore) -> None:
    """The checkpoint is removed, and the answer says why unfinished uploads were not looked for."""
    put(store, (*COMMITS, *DATA))
    removal = remove_checkpoint(FaultyStore(store, [Fault("refuse", verb="list_multiparts")]))
    assert keys(store) == set()
    assert isinstance(removal.uploads_error, PermissionDeniedError)


class NoMultiparts(MemoryStore):
    """A server that does not know how to list uploads."""

    def list_multiparts(self, prefix: str = "") -> Iterator[MultipartUpload]:  # type: ignore[override]
        raise InvalidRequestError("not implemented", key=prefix)


def test_a_server_without_a_listing_of_uploads_is_no_obstacle() -> None:
    """A server that refuses the listing of uploads for good still gets its checkpoint removed."""
    store = NoMultiparts(uuid.uuid4().hex)
    put(store, COMMITS)
    assert isinstance(remove_checkpoint(store).uploads_error, InvalidRequestError)
    assert keys(store) == set()


def test_a_refused_deletion_of_the_commit_keeps_the_data(store: MemoryStore) -> None:
    """If the commit cannot be deleted the checkpoint stays whole."""
    put(store, (*COMMITS, *DATA))
    with pytest.raises(PermissionDeniedError):
        remove_checkpoint(FaultyStore(store, [Fault("refuse", verb="delete")]))
    assert keys(store) == {*COMMITS, *DATA}


def test_what_can_pass_is_tried_again(store: MemoryStore) -> None:
    """Every request of a removal is repeated when it fails with what may pass."""
    put(store, (*COMMITS, *DATA))
    store.create_multipart(f"__2_0.{ID}.distcp")
    verbs = ("list", "list_multiparts", "delete", "abort")
    faulty = FaultyStore(store, [Fault("fail", verb=verb) for verb in verbs])
    transfer = TransferConfig(retry=RetryConfig(base_delay_s=0.0))
    remove_checkpoint(faulty, transfer=transfer)
    assert {strike.verb for strike in faulty.strikes} == set(verbs)
    assert (keys(store), open_uploads(store)) == (set(), [])


@pytest.mark.parametrize(
    ("there", "cause", "hint"),
    [
        ((), None, "dcp-cloud ls"),
        (("log.txt",), "other objects", "dcp-cloud ls"),
        (("step-1/.metadata", "step-2/.metadata"), "2 checkpoints found below", "--recursive"),
    ],
)
def test_nothing_to_remove_is_an_error_that_helps(
    store: MemoryStore, there: tuple[str, ...], cause: str | None, hint: str
) -> None:
    """Where there is no checkpoint the error says what there is instead; nothing is deleted."""
    put(store, there)
    with pytest.raises(CheckpointNotFoundError) as caught:
        remove_checkpoint(store)
    assert cause is None or cause in str(caught.value.cause)
    assert hint in str(caught.value.hint)
    assert keys(store) == set(there)


def test_an_unfinished_save_is_noticed(store: MemoryStore) -> None:
    """The plan tells when a save without a commit last wrote, and only then."""
    put(store, (f"__0_0.{ID}.distcp",))
    first = store.head(f"__0_0.{ID}.distcp").modified_at
    assert plan_removal(store).unfinished_at == first
    put(store, COMMITS)
    assert plan_removal(store).unfinished_at is None
    upload = store.create_multipart(f"__1_0.{ID}.distcp")
    assert plan_removal(store).unfinished_at == upload.started_at
    assert first is not None
    assert upload.started_at - first < timedelta(minutes=1)


def test_leftovers_of_crashed_local_writes_go(tmp_path: Path, crash_put: Callable[[LocalStore, str], None]) -> None:
    """The temporary file that a crash left beside the data is removed with the checkpoint."""
    store = LocalStore(str(tmp_path))
    put(store, (*COMMITS, *DATA))
    crash_put(store, "__9_0.distcp")
    crash_put(store, "below/__9_0.distcp")
    assert len(remove_checkpoint(store).uploads) == 1
    left = [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["below"]
