"""Sweeping: what nobody names and is old goes, everything else stays."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from dcp_cloud.checkpoint.sweep import SweepReport, sweep
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.errors import (
    ConfigError,
    CorruptCheckpointError,
    PermissionDeniedError,
    RetriesExhaustedError,
    UnsafeCheckpointError,
)
from dcp_cloud.format.layout import StoredItem, data_key, to_storage_info
from dcp_cloud.format.metadata import dump_metadata
from dcp_cloud.stores.base import MultipartUpload, ObjectMeta, ObjectStore
from dcp_cloud.stores.local import LocalStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.testing import Fault, FaultyStore, RecordingStore
from dcp_cloud.testing.wrappers import Request, StoreWrapper

ID = "0123456789abcdef" * 2
HOSTILE = b"cos\nsystem\n(S'true'\ntR."


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore(uuid.uuid4().hex)
    yield made
    made.delete([meta.key for meta in made.list()])


def put(store: ObjectStore, *keys: str) -> None:
    for key in keys:
        store.put(key, [memoryview(b"data")])


def commit(store: ObjectStore, key: str, *names: str) -> None:
    metadata = Metadata({})
    metadata.storage_data = {
        MetadataIndex(name): to_storage_info(StoredItem(key=name, offset=0, size_bytes=4)) for name in names
    }
    store.put(key, [memoryview(dump_metadata(metadata))])


def data(rank: int, save: str = ID) -> str:
    return data_key(rank, 0, save)


def keys(store: ObjectStore) -> set[str]:
    return {meta.key for meta in store.list()}


def in_two_days() -> datetime:
    return datetime.now(timezone.utc) + timedelta(days=2)


def sweep_later(store: ObjectStore, **options: object) -> SweepReport:
    return sweep(store, now=in_two_days, **options)  # type: ignore[arg-type]


def test_data_without_a_commit_goes(store: MemoryStore) -> None:
    """Data that the commit of its directory does not name goes, with or without a commit there; the rest stays."""
    put(store, data(0), data(1), f"a/{data(0)}", f"a/b/{data(0)}", f"a/b/{data(1)}")
    commit(store, ".metadata", data(0))
    commit(store, "a/b/__1.metadata", data(1))
    report = sweep_later(store)
    assert [meta.key for meta in report.orphans] == [data(1), f"a/{data(0)}", f"a/b/{data(0)}"]
    assert keys(store) == {".metadata", "a/b/__1.metadata", data(0), f"a/b/{data(1)}"}
    assert (report.size_bytes, report.young, report.undated, report.unreadable) == (12, 0, 0, ())


def test_only_objects_that_this_package_names_go(store: MemoryStore) -> None:
    """Objects of other names are never touched, not even data of torch's own writer without a commit."""
    others = ("__0_0.distcp", "shard.distcp", f"x{data(0)}", f"{data(0)}.bak", "log.txt", f"d/{data(0)}/part")
    put(store, *others)
    assert sweep_later(store).orphans == ()
    assert keys(store) == set(others)


def test_all_commits_of_a_directory_count(store: MemoryStore) -> None:
    """What any rank's own commit names, or a common one, or one further up, stays."""
    put(store, data(0), data(1), data(2), f"deep/{data(3)}", f"deep/er/{data(4)}")
    commit(store, "__0.metadata", data(0))
    commit(store, "__1.metadata", data(1))
    commit(store, ".metadata", data(2), f"deep/{data(3)}", f"deep/er/{data(4)}")
    before = keys(store)
    assert sweep_later(store).orphans == ()
    assert keys(store) == before


def test_what_is_young_stays(store: MemoryStore) -> None:
    """Data and uploads younger than the age may belong to a running save; they are counted and left alone."""
    put(store, data(0))
    store.create_multipart(data(1))
    report = sweep(store)
    assert (report.orphans, report.uploads, report.young) == ((), (), 2)
    assert keys(store) == {data(0)}
    assert len(list(store.list_multiparts())) == 1
    report = sweep(store, older_than_s=0)
    assert (len(report.orphans), len(report.uploads), report.young) == (1, 1, 0)


def test_young_data_is_not_worth_a_request(store: MemoryStore) -> None:
    """Commits are read only where there is something old to judge."""
    put(store, data(0), f"a/{data(0)}")
    commit(store, ".metadata", data(0))
    recording = RecordingStore(store)
    sweep(recording)
    assert {call.verb for call in recording.calls} == {"list", "list_multiparts"}


def test_a_dry_run_changes_nothing(store: MemoryStore) -> None:
    """A dry run tells the same and deletes nothing."""
    put(store, data(0))
    store.create_multipart(data(1))
    recording = RecordingStore(store)
    dry = sweep_later(recording, dry_run=True)
    assert dry.dry_run
    assert {call.verb for call in recording.calls} == {"list", "list_multiparts"}
    wet = sweep_later(store)
    assert wet.orphans == dry.orphans
    assert [upload.key for upload in wet.uploads] == [upload.key for upload in dry.uploads] == [data(1)]
    assert (keys(store), list(store.list_multiparts())) == (set(), [])


@pytest.mark.parametrize(
    ("content", "kind"), [(b"junk", CorruptCheckpointError), (HOSTILE, UnsafeCheckpointError), (None, Exception)]
)
def test_where_a_commit_cannot_be_read_nothing_is_touched(
    store: MemoryStore, content: bytes | None, kind: type[Exception]
) -> None:
    """A directory with a commit that is damaged, hostile or not for us is left alone and named; others are swept."""
    put(store, f"bad/{data(0)}", f"bad/below/{data(0)}", f"good/{data(0)}")
    store.create_multipart(f"bad/{data(1)}")
    commit(store, "bad/__0.metadata")
    store.put("bad/.metadata", [memoryview(content or b"")])
    commit(store, "good/.metadata")
    faults = [] if content else [Fault("refuse", verb="get", key="bad/.metadata", times=None)]
    report = sweep_later(FaultyStore(store, faults))
    assert [(one.path, one.key) for one in report.unreadable] == [
        ("bad", "bad/.metadata"),
        ("bad/below", "bad/.metadata"),
    ]
    assert isinstance(report.unreadable[0].error, kind)
    assert [meta.key for meta in report.orphans] == [f"good/{data(0)}"]
    assert len(list(store.list_multiparts())) == 1


def test_a_commit_that_vanishes_protects_its_directory(store: MemoryStore) -> None:
    """A commit that is listed but gone when it is read belongs to somebody who works here: hands off."""
    put(store, data(0))

    class Haunted(RecordingStore):
        def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
            yield from super().list(prefix)
            yield ObjectMeta(key=".metadata", size_bytes=1, etag="e")

    report = sweep_later(Haunted(store))
    assert [one.key for one in report.unreadable] == [".metadata"]
    assert keys(store) == {data(0)}


def test_a_store_that_fails_deletes_nothing(store: MemoryStore) -> None:
    """If the network fails while commits are read, the sweep ends before anything was deleted."""
    put(store, f"a/{data(0)}", f"b/{data(0)}")
    commit(store, "b/.metadata")
    faulty = FaultyStore(store, [Fault("fail", verb="get", times=None)])
    transfer = TransferConfig(retry=RetryConfig(max_attempts=2, base_delay_s=0.0))
    with pytest.raises(RetriesExhaustedError):
        sweep_later(faulty, transfer=transfer)
    assert {f"a/{data(0)}", f"b/{data(0)}"} < keys(store)


def test_what_can_pass_is_tried_again(store: MemoryStore) -> None:
    """Every request of a sweep is repeated when it fails with what may pass."""
    put(store, data(0))
    commit(store, ".metadata")
    store.create_multipart(data(1))
    verbs = ("list", "list_multiparts", "get", "delete", "abort")
    faulty = FaultyStore(store, [Fault("fail", verb=verb) for verb in verbs])
    sweep_later(faulty, transfer=TransferConfig(retry=RetryConfig(base_delay_s=0.0)))
    assert {strike.verb for strike in faulty.strikes} == set(verbs)
    assert (keys(store), list(store.list_multiparts())) == ({".metadata"}, [])


def test_uploads_of_other_programs_stay(store: MemoryStore) -> None:
    """Stale uploads of checkpoint data are dropped wherever they are; those of other names are not."""
    for key in (data(0), f"a/{data(0)}", "a/__0_0.distcp", "video.mp4", "a/model.safetensors"):
        store.create_multipart(key)
    assert len(sweep_later(store).uploads) == 3
    assert sorted(upload.key for upload in store.list_multiparts()) == ["a/model.safetensors", "video.mp4"]


class Timeless(RecordingStore):
    """A store that does not tell when anything was written."""

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        for meta in super().list(prefix):
            yield ObjectMeta(key=meta.key, size_bytes=meta.size_bytes, etag=meta.etag)

    def list_multiparts(self, prefix: str = "") -> Iterator[MultipartUpload]:  # type: ignore[override]
        for upload in self.store.list_multiparts(prefix):
            yield Undated(upload)


class Undated:
    """An upload of unknown age."""

    started_at = None

    def __init__(self, upload: MultipartUpload) -> None:
        self.key = upload.key

    def put_part(self, *_: object, **__: object) -> None:
        raise AssertionError("nobody sends parts here")

    complete = abort = put_part


def test_what_has_no_date_stays(store: MemoryStore) -> None:
    """Where the store tells no time nothing can be called old; it is counted and left alone."""
    put(store, data(0))
    store.create_multipart(data(1))
    report = sweep_later(Timeless(store))
    assert (report.orphans, report.uploads, report.undated) == ((), (), 2)
    assert keys(store) == {data(0)}


def test_uploads_that_may_not_be_listed_are_reported(store: MemoryStore) -> None:
    """Data is swept all the same, and the report says why uploads were not."""
    put(store, data(0))
    report = sweep_later(FaultyStore(store, [Fault("refuse", verb="list_multiparts")]))
    assert isinstance(report.uploads_error, PermissionDeniedError)
    assert keys(store) == set()


def test_a_negative_age_is_refused(store: MemoryStore) -> None:
    """A negative age would call objects old that do not exist yet."""
    with pytest.raises(ConfigError, match="older_than_s"):
        sweep(store, older_than_s=-1)


def test_an_age_is_measured_exactly(tmp_path: Path) -> None:
    """An object is swept once it is as old as the age, and not before."""
    store = LocalStore(str(tmp_path))
    put(store, data(0), data(1))
    now = datetime.now(timezone.utc)
    for rank, age_s in ((0, 3601), (1, 3599)):
        os.utime(tmp_path / data(rank), (now.timestamp() - age_s,) * 2)
    assert [meta.key for meta in sweep(store, older_than_s=3600, now=lambda: now).orphans] == [data(0)]
    assert keys(store) == {data(1)}


def test_leftovers_of_crashed_local_writes_go(tmp_path: Path, crash_put: Callable[[LocalStore, str], None]) -> None:
    """Temporary files and uploads that crashes left on a local disk are found and removed; a young one stays."""
    store = LocalStore(str(tmp_path))
    crash_put(store, f"step-1/{data(0)}")
    upload = store.create_multipart(f"step-2/{data(0)}")
    upload.put_part(0, [memoryview(b"part")])
    nameless = store.create_multipart(f"step-3/{data(0)}")
    os.unlink(os.path.join(nameless.directory, "name"))
    assert sweep(store).young == 3
    report = sweep_later(store)
    assert len(report.uploads) == 3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert sweep_later(store).uploads == ()


def test_a_crash_before_the_commit_leaves_what_a_sweep_removes(store: MemoryStore) -> None:
    """After a save that died before its commit a sweep leaves exactly the earlier checkpoint, which still loads."""
    place = PrefixStore(store, "run/step-1")
    uri = f"{store.uri}/run/step-1"
    state = {"w": torch.arange(1000.0)}
    dcp.save(state, storage_writer=CloudStorageWriter(uri), no_dist=True)
    before = keys(store)
    faulty = FaultyStore(place, [Fault("crash", verb="put", key=".metadata")])
    with pytest.raises(BaseException):  # noqa: B017 - torch may wrap what a dead process raises
        dcp.save({"w": torch.zeros(1000)}, storage_writer=CloudStorageWriter(uri, store=faulty), no_dist=True)
    assert len(keys(store) - before) == 1
    assert len(sweep_later(PrefixStore(store, "run")).orphans) == 1
    assert keys(store) == before
    loaded = {"w": torch.empty(1000)}
    dcp.load(loaded, storage_reader=CloudStorageReader(uri), no_dist=True)
    assert torch.equal(loaded["w"], state["w"])


_DIRECTORIES = st.sampled_from(["", "a", "a/b", "c"])
_RANKS = st.integers(0, 3)


@given(
    present=st.sets(st.tuples(_DIRECTORIES, _RANKS)),
    commits=st.dictionaries(st.tuples(_DIRECTORIES, st.sampled_from([".metadata", "__0.metadata"])), st.sets(_RANKS)),
    damaged=st.sets(_DIRECTORIES),
)
def test_exactly_the_unnamed_go(
    present: set[tuple[str, int]], commits: dict[tuple[str, str], set[int]], damaged: Iterable[str]
) -> None:
    """Whatever lies where: what a readable commit of the directory does not name goes, and nothing else."""
    store = MemoryStore(uuid.uuid4().hex)

    def at(directory: str, name: str) -> str:
        return f"{directory}/{name}" if directory else name

    put(store, *(at(directory, data(rank)) for directory, rank in present))
    for (directory, name), ranks in commits.items():
        commit(store, at(directory, name), *map(data, ranks))
    for directory in damaged:
        store.put(at(directory, ".metadata"), [memoryview(b"junk")])
    before = keys(store)
    sweep_later(store)
    spared = {place for place in ("", "a", "a/b", "c") if any(is_above(one, place) for one in damaged)}
    named = {(directory, rank) for (directory, _), ranks in commits.items() for rank in ranks}
    gone = {at(place, data(rank)) for place, rank in present if place not in spared and (place, rank) not in named}
    assert keys(store) == before - gone


def is_above(directory: str, other: str) -> bool:
    return directory in ("", other) or other.startswith(f"{directory}/")


class Meanwhile(StoreWrapper):
    """Does something once, just before a request of one kind."""

    def __init__(self, store: ObjectStore, verb: str, nth: int, action: Callable[[], None]) -> None:
        super().__init__(store)
        self.verb, self.left, self.action = verb, nth, action

    def around(self, request: Request, run: Callable[[], Any]) -> Any:
        if request.verb == self.verb:
            self.left -= 1
            if self.left == 0:
                self.action()
        return run()


@pytest.mark.parametrize("directory", ["", "step-1/", "run/step-1/"])
@pytest.mark.parametrize("above", [False, True])
def test_what_is_committed_while_a_sweep_reads_stays(store: MemoryStore, directory: str, above: bool) -> None:
    """Data that lay there for days and got a commit after the listing is judged again before it is deleted."""
    put(store, directory + data(0), directory + data(1))
    place = "" if above else directory

    def save() -> None:
        commit(store, f"{place}.metadata", (directory if above else "") + data(0))

    report = sweep_later(Meanwhile(store, "list", 2, save))
    assert keys(store) == {f"{place}.metadata", directory + data(0)}
    assert [meta.key for meta in report.orphans] == [directory + data(1)]


def test_what_is_written_anew_while_a_sweep_deletes_stays(store: MemoryStore) -> None:
    """Only the version that was judged is deleted: a copy that sends an object again has it."""
    put(store, data(0))
    report = sweep_later(Meanwhile(store, "delete", 1, lambda: put(store, data(0))))
    assert keys(store) == {data(0)}
    assert report.orphans == ()


def test_a_commit_that_cannot_be_read_by_then_protects_its_directory(store: MemoryStore) -> None:
    """What is committed meanwhile and cannot be read may name anything."""
    put(store, data(0))
    report = sweep_later(Meanwhile(store, "list", 2, lambda: put(store, ".metadata")))
    assert keys(store) == {data(0), ".metadata"}
    assert [one.key for one in report.unreadable] == [".metadata"]
