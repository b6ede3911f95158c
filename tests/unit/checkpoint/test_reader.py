"""The reader's life: which failure switches a rank's mode (none but a missing commit), and what it says of trouble."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan

from dcp_cloud import CloudStorageReader, errors
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing import Fault, RecordingStore
from dcp_cloud.testing.wrappers import Request, StoreWrapper
from dcp_cloud.transfer.events import PhaseDone, TransferEvent
from tests.unit.checkpoint.place import URI, failure, faulty, keys, load, new_store, reader, save, writer
from tests.unit.checkpoint.test_writer import STATE, Steps

COMMIT_OF_ALL = ".metadata"


def blank() -> dict[str, Any]:
    return {"w": torch.zeros(1000), "n": 0}


def both_kinds() -> ObjectStore:
    """Make a store with a checkpoint of all ranks and a stale commit of rank 0 alone."""
    store = new_store()
    Steps(writer(store), {"w": torch.full((1000,), -1.0), "n": -1}).set_up(
        rank=0, use_collectives=False
    ).write().finish()
    stale = {key: store.get(key, max_bytes=10**6).data for key in keys(store)}
    save(STATE, store)
    for key, data in stale.items():
        store.put(key, [memoryview(data)])
    return store


class Own(StoreWrapper):
    """A store of somebody else's, which breaks the rule that stores raise this package's errors only."""

    def around(self, request: Request, run: Callable[[], Any]) -> Any:
        if request.verb == "get" and request.key == COMMIT_OF_ALL:
            raise OSError("the disk is gone")
        return run()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("fail", verb="get", key=COMMIT_OF_ALL, times=None), errors.RetriesExhaustedError),
        (Fault("throttle", verb="get", key=COMMIT_OF_ALL, times=None), errors.RetriesExhaustedError),
        (Fault("refuse", verb="get", key=COMMIT_OF_ALL), errors.PermissionDeniedError),
        (None, OSError),
    ],
    ids=["down", "throttled", "refused", "foreign error"],
)
def test_no_failure_but_absence_switches_to_the_ranks_own_commit(
    fault: Fault | None, expected: type[Exception]
) -> None:
    """A rank that cannot read .metadata fails with the reason; it never loads a stale commit of its own instead."""
    store = RecordingStore(faulty(both_kinds(), fault) if fault else Own(both_kinds()))
    loaded = blank()
    error = failure(load, loaded, store)
    assert isinstance(error, expected)
    assert loaded["n"] == 0
    assert not loaded["w"].any()
    assert not [call for call in store.calls if call.key.startswith("__0")]


@pytest.mark.parametrize("damage", [b"", b"not a pickle", b"cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_commit_does_not_switch_either(damage: bytes) -> None:
    """A .metadata that is there but bad is reported, not passed over for an older one of the rank's own."""
    store = both_kinds()
    store.put(COMMIT_OF_ALL, [memoryview(damage)])
    error = failure(load, blank(), store)
    assert isinstance(error, (errors.CorruptCheckpointError, errors.UnsafeCheckpointError))


def test_a_503_that_passes_is_not_noticed() -> None:
    """Transient errors of the first request are repeated, and the right checkpoint is loaded."""
    store = faulty(both_kinds(), Fault("throttle", verb="get", key=COMMIT_OF_ALL, times=2))
    loaded = blank()
    load(loaded, store)
    assert loaded["n"] == 7


def test_a_rank_finds_its_own_commit_when_there_is_no_other() -> None:
    """A save without collectives is loaded by rank; a rank that has none hears how it was saved."""
    store = new_store()
    Steps(writer(store)).set_up(rank=0, use_collectives=False).write().finish()
    loaded = blank()
    load(loaded, store)
    assert loaded["n"] == 7
    made = reader(store)
    with pytest.raises(errors.CheckpointNotFoundError, match="without collectives"):
        made.read_metadata()
    made.read_metadata(rank=1)
    with pytest.raises(errors.CheckpointNotFoundError, match="without collectives"):
        made.set_up_storage_reader(Metadata({}), True)


def test_a_failure_is_forgotten_when_the_next_reading_succeeds() -> None:
    """A reader that failed, without torch asking further, loads as soon as there is something to load."""
    store = new_store()
    made = reader(store)
    with pytest.raises(errors.CheckpointNotFoundError):
        made.read_metadata()
    save(STATE, store)
    loaded = blank()
    dcp.load(loaded, storage_reader=made)
    assert loaded["n"] == 7


@pytest.mark.parametrize("clear", ["reset", "load"])
def test_a_failed_load_leaves_no_state(clear: str) -> None:
    """After a failure at any step the same reader serves the next load."""
    store = new_store()
    save(STATE, store)
    broken = faulty(store, Fault("refuse", verb="get_range"), Fault("refuse", verb="get", nth=2))
    made = reader(broken)
    for _ in range(2):
        assert isinstance(failure(dcp.load, blank(), storage_reader=made), errors.PermissionDeniedError)
        if clear == "reset":
            made.reset()
    loaded = blank()
    dcp.load(loaded, storage_reader=made)
    assert loaded["n"] == 7


def test_every_load_reads_the_commit_anew() -> None:
    """A reader never serves a checkpoint that has been replaced since."""
    store = new_store()
    made = reader(store)
    for value in (1, 2):
        save({"w": torch.full((1000,), float(value)), "n": value}, store)
        loaded = blank()
        dcp.load(loaded, storage_reader=made)
        assert loaded["n"] == value
        assert loaded["w"].eq(value).all()


class Overtaken(StoreWrapper):
    """Replaces the checkpoint between the reading of its commit and of its data."""

    def around(self, request: Request, run: Callable[[], Any]) -> Any:
        if request.verb == "get_range" and request.key.endswith(".distcp"):
            store, self.store = self.store, new_store()
            save({"w": torch.zeros(1000), "n": 8}, store)
            self.store = store
        return run()


def test_a_reader_that_is_overtaken_is_told_to_load_again() -> None:
    """The objects of a checkpoint that was replaced meanwhile are gone: a typed error, never a mixture."""
    store = new_store()
    save(STATE, store)
    loaded = blank()
    error = failure(load, loaded, Overtaken(store))
    assert isinstance(error, errors.IncompleteCheckpointError)
    assert "load again" in str(error)
    load(loaded, store)
    assert loaded["n"] == 8


def test_read_data_may_come_first() -> None:
    """A reader that is driven by hand reads its commit when it needs it, and may read again."""
    store = new_store()
    save(STATE, store)
    made, planner = reader(store), dcp.DefaultLoadPlanner()
    planner.set_up_planner(blank(), reader(store).read_metadata(), True)
    plan = planner.create_local_plan()
    for _ in range(2):
        made.reset()
        assert made.read_data(plan, planner).value() is None
    assert made.read_data(LoadPlan([]), planner).value() is None
    assert made.last_load is not None
    assert made.last_load.items == 0


def test_metadata_of_other_writers_gets_what_torch_expects() -> None:
    """A commit without storage_meta, as old versions of torch wrote it, is given one with the id of the load."""
    from dcp_cloud.format.metadata import dump_metadata

    store = new_store()
    save(STATE, store)
    metadata = reader(store).read_metadata()
    metadata.storage_meta = None
    store.put(COMMIT_OF_ALL, [memoryview(dump_metadata(metadata))])
    made = reader(store)
    first, second = made.read_metadata(), made.read_metadata()
    assert isinstance(first.storage_meta, StorageMeta)
    assert isinstance(second.storage_meta, StorageMeta)
    assert first.storage_meta.load_id == second.storage_meta.load_id is not None
    made.reset()
    third = made.read_metadata().storage_meta
    assert third is not None
    assert third.load_id != first.storage_meta.load_id


def test_errors_of_the_planner_pass_through() -> None:
    """What a load planner raises is not dressed up as trouble of the store."""

    class Broken(dcp.DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: Any) -> None:
            raise ZeroDivisionError

    store = new_store()
    save(STATE, store)
    events: list[TransferEvent] = []
    made = reader(store, on_event=events.append)
    assert isinstance(failure(dcp.load, blank(), storage_reader=made, planner=Broken()), ZeroDivisionError)
    assert [event.error for event in events if isinstance(event, PhaseDone)] == ["ZeroDivisionError"]


def test_a_used_reader_pickles() -> None:
    """A reader goes through a pipe after a load and after a failure, and its copy loads."""
    store = new_store()
    made = reader(store)
    failure(dcp.load, blank(), storage_reader=made)
    save(STATE, store)
    dcp.load(blank(), storage_reader=made)
    loaded = blank()
    dcp.load(loaded, storage_reader=pickle.loads(pickle.dumps(made)))
    assert loaded["n"] == 7


def test_every_error_pickles_as_it_is() -> None:
    """Errors travel between ranks by pickle: type, text and fields arrive."""
    for make in (errors.CheckpointNotFoundError, errors.CorruptCheckpointError, errors.StateDictMismatchError):
        error = make("what", key="k", cause=ValueError("why"), hint="do this")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_nothing_is_sent_before_the_load() -> None:
    """Making a reader, asking for its id, resetting and closing it are no requests."""
    store = RecordingStore(new_store())
    made = reader(store)
    assert made.checkpoint_id == URI
    made.reset()
    made.close()
    assert not store.calls
    assert CloudStorageReader.validate_checkpoint_id(URI)
    assert not CloudStorageReader.validate_checkpoint_id("/a/plain/path")


class OvertakenPlanner(dcp.DefaultLoadPlanner):
    """Lets another thread load with the same reader, at a moment of the load."""

    def __init__(self, overtake: Callable[[], None], moment: str) -> None:
        super().__init__()
        self.overtake, self.moment = overtake, moment

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            with ThreadPoolExecutor(1) as threads:
                threads.submit(self.overtake).result()

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        self._at("set_up")
        super().set_up_planner(*args, **kwargs)

    def create_local_plan(self) -> LoadPlan:
        self._at("plan")
        return super().create_local_plan()

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        self._at("finish")
        return super().finish_plan(new_plan)

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        self._at("fill")
        return super().resolve_tensor(read_item)


@pytest.mark.parametrize("moment", ["set_up", "plan", "finish", "fill"])
def test_overlapping_loads_with_one_reader_are_told_apart(moment: str) -> None:
    """A load that another thread overtook in the same reader fails, instead of giving the numbers of the other one."""
    places = {"first": new_store(), "second": new_store()}
    save({"w": torch.zeros(5)}, places["first"])
    save({"w": torch.ones(5)}, places["second"])
    made = CloudStorageReader("memory://m/first", store=lambda uri: places[uri.prefix.rpartition("/")[2]])
    other, mine = {"w": torch.full((5,), 7.0)}, {"w": torch.full((5,), 7.0)}

    def overtake() -> None:
        dcp.load(other, storage_reader=made, checkpoint_id="memory://m/second")

    planner = OvertakenPlanner(overtake, moment)
    error = failure(dcp.load, mine, storage_reader=made, checkpoint_id="memory://m/first", planner=planner)
    assert isinstance(error, errors.ConfigError)
    assert "another load has begun" in str(error)
    assert other["w"].eq(1).all()
    dcp.load(mine, storage_reader=made, checkpoint_id="memory://m/first")
    assert mine["w"].eq(0).all()


def test_a_reader_pickles_while_it_loads() -> None:
    """A copy begins anew, wherever the load stands."""
    store = new_store()
    save(STATE, store)
    made = reader(store)
    made.reset()
    copied = pickle.loads(pickle.dumps(made))
    state = blank()
    dcp.load(state, storage_reader=copied)
    assert state["n"] == 7
