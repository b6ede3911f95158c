"""The commit and what surrounds it, request by request."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from dcp_cloud.checkpoint.commit import Before, check_complete, commit, delete_replaced, look_before, object_keys
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.errors import (
    BucketNotFoundError,
    CheckpointExistsError,
    CommitConflictError,
    CorruptCheckpointError,
    DcpCloudError,
    IncompleteCheckpointError,
    PermissionDeniedError,
    RetriesExhaustedError,
)
from dcp_cloud.format.layout import StoredItem, to_storage_info
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing import Fault, RecordingStore
from dcp_cloud.testing.wrappers import Request, StoreWrapper
from tests.unit.checkpoint.place import TRANSFER, failure, faulty, keys, load, new_store, save, writer


def put(store: ObjectStore, key: str, data: bytes = b"x") -> str:
    return store.put(key, [memoryview(data)]).etag


def naming(*names: str) -> Metadata:
    """Make metadata that names objects."""
    metadata = Metadata({})
    metadata.storage_data = {
        MetadataIndex(name): to_storage_info(StoredItem(key=name, offset=0, size_bytes=1)) for name in names
    }
    return metadata


@pytest.mark.parametrize(
    ("present", "rank", "overwrite", "expected"),
    [
        ((), None, True, Before(key=".metadata", etag=None)),
        ((), 3, False, Before(key="__3.metadata", etag=None)),
        ((".metadata",), None, True, ".metadata"),
        ((".metadata",), None, False, CheckpointExistsError),
        ((".metadata",), 0, True, CheckpointExistsError),
        ((".metadata",), 0, False, CheckpointExistsError),
        (("__0.metadata",), None, True, Before(key=".metadata", etag=None, has_rank_commits=True)),
        (("__0.metadata",), None, False, CheckpointExistsError),
        (("__0.metadata", "__1.metadata"), 1, True, "__1.metadata"),
        (("__1.metadata",), 1, False, CheckpointExistsError),
        (("__0.metadata",), 1, True, Before(key="__1.metadata", etag=None)),
    ],
)
def test_what_stands_there_decides(
    present: tuple[str, ...], rank: int | None, overwrite: bool, expected: Before | str | type[DcpCloudError]
) -> None:
    """A save sees what it would replace, and is refused where it may not or where it would be shadowed on load."""
    store = new_store()
    etags = {key: put(store, key) for key in present}
    if isinstance(expected, type):
        with pytest.raises(expected, match="prefix") as caught:
            look_before(store, rank=rank, overwrite=overwrite)
        assert caught.value.key == store.uri
        return
    found = look_before(store, rank=rank, overwrite=overwrite)
    assert found == (Before(key=expected, etag=etags[expected]) if isinstance(expected, str) else expected)


def test_a_missing_bucket_is_said_before_anything_is_sent() -> None:
    """A bucket that does not exist is no empty place."""

    class Missing(StoreWrapper):
        def around(self, request: Request, run: Callable[[], object]) -> object:  # type: ignore[override]
            raise BucketNotFoundError("no such bucket", key="bucket")

    with pytest.raises(BucketNotFoundError):
        look_before(Missing(new_store()), rank=None, overwrite=True)


def _planned() -> Metadata:
    chunks = [ChunkStorageMetadata(torch.Size([start]), torch.Size([4])) for start in (0, 4)]
    return Metadata(
        {"w": TensorStorageMetadata(TensorProperties(), torch.Size([8]), chunks), "b": BytesStorageMetadata()}
    )


def _results(*indices: MetadataIndex) -> list[list[WriteResult]]:
    return [[WriteResult(index, 1, f"record {place}")] for place, index in enumerate(indices)]


ALL = (MetadataIndex("w", torch.Size([0])), MetadataIndex("w", torch.Size([4])), MetadataIndex("b"))


def test_every_planned_item_needs_a_result() -> None:
    """All chunks and bytes of the plan have to be there; hints in the index do not matter, doubles do not hurt."""
    hinted = (MetadataIndex("w", torch.Size([0]), 5), *ALL[1:], ALL[1])
    assert check_complete(_planned(), _results(*hinted), where="here").keys() == set(ALL)
    for left_out in ALL:
        with pytest.raises(IncompleteCheckpointError, match=f"1 planned item.*no result for {left_out.fqn}") as caught:
            check_complete(_planned(), _results(*(index for index in ALL if index != left_out)), where="here")
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)


@pytest.mark.parametrize(
    ("had", "overwrite", "expected"),
    [
        (False, True, CommitConflictError),
        (True, True, CommitConflictError),
        (False, False, CheckpointExistsError),
        (True, False, CheckpointExistsError),
    ],
)
def test_of_two_commits_the_second_hears_of_the_first(
    had: bool, overwrite: bool, expected: type[DcpCloudError]
) -> None:
    """A commit is conditional on what stood there when its save began."""
    store = new_store()
    etag = put(store, ".metadata", b"old") if had else None
    put(store, ".metadata", b"the other job's")
    with pytest.raises(expected):
        commit(store, b"ours", Before(key=".metadata", etag=etag), overwrite=overwrite)
    assert store.get(".metadata", max_bytes=100).data == b"the other job's"


def test_a_commit_that_was_deleted_meanwhile_is_a_conflict() -> None:
    """Somebody who removes a checkpoint while it is being replaced is not overruled."""
    store = new_store()
    etag = put(store, ".metadata", b"old")
    store.delete([".metadata"])
    with pytest.raises(CommitConflictError):
        commit(store, b"ours", Before(key=".metadata", etag=etag), overwrite=True)


def test_only_objects_of_the_replaced_checkpoint_alone_are_deleted() -> None:
    """What the current checkpoint names, what is no data object, and what lies deeper stays."""
    store = new_store()
    shared, old, deeper, note = "__0_0.distcp", "__0_1.distcp", "deeper/__0_0.distcp", "note.txt"
    for key in (shared, old, deeper, note):
        put(store, key)
    assert delete_replaced(store, [shared, old, deeper, note], naming(shared)) == 1
    assert keys(store) == {shared, deeper, note}


def test_a_failed_deletion_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The commit has been made: what cannot be deleted is left to a sweep and logged."""
    store = faulty(new_store(), Fault("refuse", verb="delete"))
    put(store, "__0_0.distcp")
    assert delete_replaced(store, ["__0_0.distcp"], naming()) == 0
    assert "sweep" in caplog.text


def test_names_that_leave_the_prefix_are_no_names() -> None:
    """A forged record raises instead of naming something outside."""
    metadata = naming("a")
    next(iter(metadata.storage_data.values())).relative_path = "../a"
    with pytest.raises(CorruptCheckpointError):
        object_keys(metadata)


@pytest.mark.parametrize("had", [True, False])
@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (lambda had: [], None),
        (lambda had: [Fault("refuse", verb="put", key=".metadata")], PermissionDeniedError),
        # Read before: by the look at what is there, and to know the data of the checkpoint to be replaced.
        (lambda had: [Fault("refuse", verb="get", key=".metadata", nth=2 + had)], PermissionDeniedError),
        (lambda had: [Fault("fail", verb="put", key=".metadata", times=None)], RetriesExhaustedError),
    ],
    ids=["nothing", "refused", "unreadable", "down"],
)
def test_an_unknown_outcome_never_costs_the_data(
    had: bool, then: Callable[[bool], list[Fault]], expected: type[DcpCloudError] | None
) -> None:
    """The answer to the commit is lost although it took effect: whatever happens then, the data stays."""
    store, state = new_store(), {"w": torch.ones(10)}
    if had:
        save({"w": torch.zeros(10)}, store)
    broken = faulty(store, Fault("fail", verb="put", key=".metadata", when="after"), *then(had))
    if expected is None:
        save(state, broken)
    else:
        assert type(failure(save, state, broken)) is expected
    loaded = {"w": torch.zeros(10)}
    load(loaded, store)
    assert loaded["w"].all()


@pytest.mark.parametrize("had", [True, False])
def test_a_refused_commit_leaves_what_was_there(had: bool) -> None:
    """A commit that is refused for good fails the save; the checkpoint before it is untouched."""
    store = new_store()
    if had:
        save({"w": torch.zeros(10)}, store)
    error = failure(save, {"w": torch.ones(10)}, faulty(store, Fault("refuse", verb="put", key=".metadata")))
    assert isinstance(error, PermissionDeniedError)
    loaded = {"w": torch.ones(10)}
    if had:
        load(loaded, store)
        assert not loaded["w"].any()
    else:
        assert ".metadata" not in keys(store)


def test_rank_local_commits_go_before_their_data() -> None:
    """A save with collectives removes stale rank-local commits, each before the objects that it names."""
    from dcp_cloud.format.metadata import dump_metadata

    store = RecordingStore(new_store())
    for rank in (0, 7):
        put(store, f"__{rank}_0.distcp")
        put(store, f"__{rank}.metadata", dump_metadata(naming(f"__{rank}_0.distcp")))
    save({"w": torch.ones(3)}, store)
    assert [key for key in keys(store) if not key.endswith(".distcp")] == [".metadata"]
    assert len(keys(store)) == 2
    deleted = [call.key for call in store.calls if call.verb == "delete"]
    for rank in (0, 7):
        assert deleted.index(f"__{rank}.metadata") < deleted.index(f"__{rank}_0.distcp")


def test_an_unreadable_commit_can_be_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """A damaged .metadata does not stop a save; what it named is left, and said."""
    store = new_store()
    put(store, ".metadata", b"damaged")
    put(store, "__0_0.distcp")
    save({"w": torch.ones(3)}, store)
    load({"w": torch.zeros(3)}, store)
    assert "__0_0.distcp" in keys(store)
    assert "cannot be read" in caplog.text


class Replacing(StoreWrapper):
    """Replaces an object while it is being read, a number of times."""

    def __init__(self, store: ObjectStore, contents: list[bytes]) -> None:
        super().__init__(store)
        self.contents = contents

    def around(self, request: Request, run: Callable[[], object]) -> object:  # type: ignore[override]
        if request.verb == "get_range" and self.contents:
            put(self.store, request.key, self.contents.pop())
        return run()


@pytest.mark.parametrize("lengths", [(20, 20), (20, 9), (9, 30), (20, 1)], ids=str)
def test_an_object_that_is_replaced_meanwhile_is_read_whole(
    lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a long object are all of one version, the newest one, of whatever length."""
    from dcp_cloud.checkpoint import fetch

    monkeypatch.setattr(fetch, "_FIRST_BYTES", 8)
    monkeypatch.setattr(fetch, "_PIECE_BYTES", 5)
    store = new_store()
    old, new = (bytes([number]) * length for number, length in enumerate(lengths))
    put(store, "k", old)
    data, etag = read_object(Replacing(store, [new]), "k", TRANSFER)
    assert bytes(data) == new
    assert etag == store.head("k").etag


def test_an_object_longer_than_any_metadata_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A .metadata of absurd length is refused by its length."""
    from dcp_cloud.checkpoint import fetch

    monkeypatch.setattr(fetch, "_FIRST_BYTES", 8)
    monkeypatch.setattr(fetch, "_MAX_BYTES", 10)
    store = RecordingStore(new_store())
    put(store, "k", bytes(11))
    with pytest.raises(CorruptCheckpointError, match="11 bytes"):
        read_object(store, "k", TRANSFER)
    assert not store.count("get_range")


class Meeting(StoreWrapper):
    """Lets another job do something just before, or after, the commit of this one."""

    def __init__(self, store: ObjectStore, key: str, when: str, action: Callable[[], object]) -> None:
        super().__init__(store)
        self.key, self.when, self.action = key, when, action

    def around(self, request: Request, run: Callable[[], object]) -> object:  # type: ignore[override]
        is_commit = request.verb == "put" and request.key == self.key
        if is_commit and self.when == "before":
            self.action()
        result = run()
        if is_commit and self.when == "after":
            self.action()
        return result


needs_rank_local = pytest.mark.skipif(
    "use_collectives" not in inspect.signature(dcp.save).parameters, reason="dcp.save has it from torch 2.9 on"
)


def save_alone(value: float, store: ObjectStore, *, overwrite: bool) -> None:
    dcp.save({"w": torch.full((3,), value)}, storage_writer=writer(store, overwrite=overwrite), use_collectives=False)


@needs_rank_local
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rank_yields_to_a_commit_of_all(overwrite: bool, when: str) -> None:
    """A rank's own commit that meets one of all ranks is taken back with its data, and its save says so."""
    store = new_store()
    meeting = Meeting(store, "__0.metadata", when, lambda: save({"w": torch.full((3,), 2.0)}, store))
    with pytest.raises(CommitConflictError if overwrite else CheckpointExistsError, match="with collectives"):
        save_alone(1.0, meeting, overwrite=overwrite)
    loaded = {"w": torch.zeros(3)}
    load(loaded, store)
    assert loaded["w"].tolist() == [2.0] * 3
    assert len(keys(store)) == 2  # its commit and its data


@needs_rank_local
def test_a_commit_of_all_replaces_no_rank_that_came_first() -> None:
    """With overwrite=False a save with collectives that meets the commit of a rank is refused and leaves nothing."""
    store = new_store()

    class Late(StoreWrapper):
        def around(self, request: Request, run: Callable[[], object]) -> object:  # type: ignore[override]
            if request.verb == "put" and request.key.endswith(".distcp"):
                save_alone(1.0, store, overwrite=False)
            return run()

    error = failure(save, {"w": torch.full((3,), 2.0)}, Late(store), overwrite=False)
    assert isinstance(error, CheckpointExistsError)
    assert "a rank has committed" in str(error)
    assert {key for key in keys(store) if not key.endswith(".distcp")} == {"__0.metadata"}
    assert len(keys(store)) == 2
