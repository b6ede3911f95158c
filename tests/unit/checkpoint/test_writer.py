"""The writer's life: ids, steps called once, twice or never, failures in each of them, and what is left behind."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from dcp_cloud.config import MIB, RetryConfig, TransferConfig
from dcp_cloud.errors import CheckpointExistsError, ConfigError, PermissionDeniedError
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.stores.base import StoreLimits
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing import Fault, RecordingStore
from dcp_cloud.testing.wrappers import SimulatedCrash
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, RequestDone, TransferEvent
from tests.unit.checkpoint.place import URI, failure, faulty, keys, load, new_store, save, writer

STATE = {"w": torch.arange(1000.0), "n": 7}


def data_keys(store: Any) -> set[str]:
    return {key for key in keys(store) if key.endswith(".distcp")}


def save_ids(store: Any) -> set[str]:
    return {key.split(".")[1] for key in data_keys(store)}


class Steps:
    """Calls a writer's methods as torch does, one by one."""

    def __init__(self, made: CloudStorageWriter, state: dict[str, Any] | None = None) -> None:
        self.writer = made
        self.planner = dcp.DefaultSavePlanner()
        self.planner.set_up_planner(state or STATE, None, True)
        self.metadata = Metadata({})
        self.results: Any = None

    def set_up(self, **kwargs: Any) -> Steps:
        self.writer.set_up_storage_writer(True, **kwargs)
        return self

    def write(self) -> Steps:
        plan = self.writer.prepare_local_plan(self.planner.create_local_plan())
        plans, self.metadata = self.planner.create_global_plan([plan])
        plan = self.planner.finish_plan(self.writer.prepare_global_plan(plans)[0])
        self.results = [self.writer.write_data(plan, self.planner).value()]
        return self

    def finish(self) -> Steps:
        self.writer.finish(self.metadata, self.results)
        return self


@pytest.mark.parametrize("first", ["reset", "storage_meta", "set_up", "nothing"])
def test_steps_may_be_left_out(first: str) -> None:
    """reset, storage_meta and set_up are called in some versions of torch and not in others; the save works."""
    store = new_store()
    steps = Steps(writer(store))
    if first == "reset":
        steps.writer.reset()
        steps.writer.reset(URI)
    elif first == "storage_meta":
        steps.writer.storage_meta()
    if first != "nothing":
        steps.set_up()
    steps.write().finish()
    loaded = {"w": torch.zeros(1000), "n": 0}
    load(loaded, store)
    assert loaded["n"] == 7


def test_no_two_saves_share_an_id() -> None:
    """Whether a save ended, failed or was never finished: the next one names its objects otherwise."""
    made, ids = writer(new_store()), []
    for steps in (["set_up", "write", "finish"], ["set_up"], ["set_up", "write"], ["set_up", "write", "finish"]):
        store = new_store()
        made._location.store = store
        one = Steps(made)
        for step in steps:
            getattr(one, step)()
        ids.extend(save_ids(store))
    assert len(ids) == len(set(ids)) == 3


def test_the_announced_id_is_the_stored_one() -> None:
    """What storage_meta tells planners is in the names and in .metadata."""
    store = new_store()
    made = writer(store)
    for _ in range(2):
        announced = made.storage_meta()
        Steps(made).set_up().write().finish()
        stored = CloudStorageReader(URI, store=store).read_metadata().storage_meta
        assert announced is not None
        assert stored is not None
        assert announced.save_id == stored.save_id
        assert save_ids(store) == {stored.save_id}


@pytest.mark.parametrize(
    ("kwargs", "data", "commit"),
    [
        ({}, "__0_0.", ".metadata"),
        ({"rank": 3, "use_collectives": True}, "__3_0.", ".metadata"),
        ({"rank": 3, "use_collectives": False}, "__3_0.", "__3.metadata"),
    ],
)
def test_objects_are_named_by_rank(kwargs: dict[str, Any], data: str, commit: str) -> None:
    """Each rank names its own objects; without collectives its own commit too."""
    store = new_store()
    Steps(writer(store)).set_up(**kwargs).write().finish()
    assert commit in keys(store)
    assert [key for key in keys(store) if key.startswith(data)]
    assert len(keys(store)) == 2


def test_nothing_of_a_save_travels_with_the_plan() -> None:
    """Plans are cached with what they carry, so they carry nothing; plans of cached saves may be empty."""
    made = writer(new_store())
    for plan in (dcp.SavePlan([]), dcp.SavePlan([], usable=False) if hasattr(dcp.SavePlan([]), "usable") else None):
        if plan is not None:
            assert made.prepare_local_plan(plan) is plan
            assert made.prepare_global_plan([plan])[0] is plan
            assert plan.storage_data is None


def test_the_metadata_of_the_plan_is_not_changed() -> None:
    """The coordinator broadcasts and caches what it gave to finish; megabytes of storage records are not added."""
    steps = Steps(writer(new_store())).set_up().write()
    steps.finish()
    assert getattr(steps.metadata, "storage_data", None) is None


def test_a_save_is_cut_into_objects_that_the_store_takes() -> None:
    """Where items do not fit into one object, the rank begins another; every one is named in .metadata."""
    limits = StoreLimits(
        min_part_bytes=1, max_part_bytes=MIB, max_parts=100, max_put_bytes=MIB, max_object_bytes=5 * MIB
    )
    store = MemoryStore(new_store()._name, limits=limits)
    state = {f"w{n}": torch.full((MIB // 2,), float(n)) for n in range(6)}
    save(state, store, transfer=TransferConfig(part_size_bytes=MIB))
    assert len(data_keys(store)) == 3
    loaded = {name: torch.zeros(MIB // 2) for name in state}
    load(loaded, store)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("verb", "when"),
    [
        # Not create_multipart, after: nobody knows the id of that upload, so it is left to a sweep.
        ("create_multipart", "before"),
        *((verb, when) for verb in ("put_part", "complete", "put") for when in ("before", "after")),
    ],
)
@pytest.mark.parametrize("had", [True, False])
def test_a_failed_write_leaves_nothing_and_the_writer_goes_on(verb: str, when: str, had: bool) -> None:
    """Whatever request is refused: no object and no upload is left, an earlier checkpoint is, and a retry works."""
    store = new_store()
    if had:
        save({"w": torch.zeros(1000), "n": 1}, store)
    before = keys(store)
    made = writer(
        faulty(store, Fault("refuse", verb=verb, key="*.distcp", when=when)),
        transfer=TransferConfig(part_size_bytes=10**6 if verb == "put" else 1000, max_concurrency=2),
    )
    assert isinstance(failure(dcp.save, STATE, storage_writer=made), PermissionDeniedError)
    assert keys(store) == before
    assert not list(store.list_multiparts())
    assert made.last_save is not None
    dcp.save(STATE, storage_writer=made)
    assert len(keys(store)) == 2
    loaded = {"w": torch.zeros(1000), "n": 0}
    load(loaded, store)
    assert loaded["n"] == 7


class Raising(dcp.DefaultSavePlanner):
    """Gives some items and then raises."""

    def __init__(self, error: BaseException, after: int) -> None:
        super().__init__()
        self.error = error
        self.left = after

    def resolve_data(self, write_item: Any) -> Any:
        if not self.left:
            raise self.error
        self.left -= 1
        return super().resolve_data(write_item)


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_planner_that_raises_is_heard_and_leaves_nothing(error: BaseException, after: int) -> None:
    """An exception out of the planner, a Ctrl-C too, arrives as it is; what was sent already is taken back."""
    store = new_store()
    state = {f"w{n}": torch.full((1000,), float(n)) for n in range(8)}
    made = writer(store, transfer=TransferConfig(part_size_bytes=1500))
    raised = failure(dcp.save, state, storage_writer=made, planner=Raising(error, after))
    assert type(raised) is type(error)
    assert not keys(store)
    assert not list(store.list_multiparts())
    dcp.save(state, storage_writer=made)
    assert ".metadata" in keys(store)


def test_a_process_that_dies_in_the_commit_leaves_the_old_checkpoint() -> None:
    """Neither a crash before the commit nor one after it costs a checkpoint."""
    for when, expected in (("before", 0.0), ("after", 1.0)):
        store = new_store()
        save({"w": torch.zeros(10)}, store)
        broken = faulty(store, Fault("crash", verb="put", key=".metadata", when=when))
        assert isinstance(failure(save, {"w": torch.ones(10)}, broken), SimulatedCrash)
        loaded = {"w": torch.full((10,), 5.0)}
        load(loaded, store)
        assert loaded["w"].eq(expected).all()


def test_overwrite_false_is_asked_before_the_planner() -> None:
    """A refused save reads no tensor, sends nothing and can be repeated elsewhere with the same writer."""
    places = {"first": new_store(), "second": new_store()}
    made = CloudStorageWriter(
        "memory://m/first", overwrite=False, store=lambda uri: places[uri.prefix.rpartition("/")[2]]
    )
    dcp.save(STATE, storage_writer=made)
    before = keys(places["first"])
    error = failure(dcp.save, STATE, storage_writer=made, planner=Raising(AssertionError(), 0))
    assert isinstance(error, CheckpointExistsError)
    assert keys(places["first"]) == before
    dcp.save(STATE, storage_writer=made, checkpoint_id="memory://m/second")
    assert ".metadata" in keys(places["second"])


@pytest.mark.parametrize("moment", ["write", "finish"])
@pytest.mark.parametrize("resets", [True, False])
def test_overlapping_saves_with_one_writer_are_told_apart(moment: str, resets: bool) -> None:
    """A save that another thread's save overtook in the same writer fails, instead of committing at its place."""
    places = {"first": new_store(), "second": new_store()}
    made = CloudStorageWriter("memory://m/first", store=lambda uri: places[uri.prefix.rpartition("/")[2]])
    mine = Steps(made).set_up()
    if moment == "finish":
        mine.write()

    def other() -> None:
        if resets:
            made.reset("memory://m/second")
        Steps(made).set_up().write().finish()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    with pytest.raises(ConfigError, match="another save has begun"):
        getattr(mine, moment)()
    loaded = {"w": torch.zeros(1000), "n": 0}
    load(loaded, places["second" if resets else "first"])
    assert loaded["n"] == 7
    assert (".metadata" in keys(places["first"])) == (not resets)


class Held(dcp.DefaultSavePlanner):
    """Sets up when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.has_come, self.may_go = threading.Event(), threading.Event()

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.has_come.set()
        assert self.may_go.wait(60)
        super().set_up_planner(state_dict, storage_meta, is_coordinator)


def test_a_save_that_is_overtaken_while_it_plans_takes_nothing_over() -> None:
    """A save does not go to the place of another one that began, in another thread, before the writer was set up."""
    places = {name: new_store() for name in ("first", "second", "third")}
    made = CloudStorageWriter("memory://m/first", store=lambda uri: places[uri.prefix.rpartition("/")[2]])
    held = Held()

    def overtaken() -> BaseException:
        return failure(
            dcp.save, {"w": torch.zeros(3)}, storage_writer=made, checkpoint_id="memory://m/second", planner=held
        )

    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(overtaken)
        assert held.has_come.wait(10)
        dcp.save({"w": torch.ones(3)}, storage_writer=made, checkpoint_id="memory://m/third")
        held.may_go.set()
        error = other.result()
    assert isinstance(error, ConfigError)
    assert "another save has begun" in str(error)
    assert "memory://m/second" in str(error)
    loaded = {"w": torch.full((3,), 5.0)}
    load(loaded, places["third"])
    assert loaded["w"].eq(1).all()
    assert not keys(places["second"])
    dcp.save({"w": torch.zeros(3)}, storage_writer=made, checkpoint_id="memory://m/first")
    assert ".metadata" in keys(places["first"])


class OvertakenWriter(CloudStorageWriter):
    """Is moved by another thread while it commits."""

    def _describe_save(self, save_id: str) -> StorageMeta:
        thread = threading.Thread(target=self.reset, args=("memory://m/second",))
        thread.start()
        thread.join()
        return super()._describe_save(save_id)


def test_a_save_that_is_overtaken_at_its_commit_stays_where_it_is() -> None:
    """The place of a save is its own from its beginning on, however late another one moves the writer."""
    places = {name: new_store() for name in ("first", "second")}
    made = OvertakenWriter("memory://m/first", store=lambda uri: places[uri.prefix.rpartition("/")[2]])
    Steps(made).set_up().write().finish()
    assert not keys(places["second"])
    committed = places["first"].get(".metadata", max_bytes=2**20).data
    found = load_metadata(memoryview(committed), key=".metadata").storage_meta
    assert found is not None
    assert found.checkpoint_id == "memory://m/first"
    assert made.checkpoint_id == "memory://m/second"


class OvertakingPlanner(dcp.DefaultSavePlanner):
    """Lets another thread move the writer while data is written."""

    def __init__(self, move: Callable[[], None]) -> None:
        super().__init__()
        self.move = move

    def resolve_data(self, write_item: Any) -> Any:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(self.move).result()
        return super().resolve_data(write_item)


def test_a_save_that_is_overtaken_in_its_data_asks_at_its_own_place_only() -> None:
    """What a save replaces is looked up where it goes, by whichever thread."""
    places = {name: new_store() for name in ("first", "second")}
    for store in places.values():
        save(STATE, store)
    seen = {name: RecordingStore(store) for name, store in places.items()}
    made = CloudStorageWriter("memory://m/first", store=lambda uri: seen[uri.prefix.rpartition("/")[2]])
    planner = OvertakingPlanner(lambda: made.reset("memory://m/second"))
    error = failure(dcp.save, STATE, storage_writer=made, checkpoint_id="memory://m/first", planner=planner)
    assert isinstance(error, ConfigError)
    assert not seen["second"].calls
    for store in places.values():
        loaded = {"w": torch.zeros(1000), "n": 0}
        load(loaded, store)
        assert loaded["n"] == 7


def test_a_writer_that_was_moved_in_the_main_thread_saves_in_another() -> None:
    """Whoever resets a writer himself may save in a thread that has not."""
    places = {name: new_store() for name in ("first", "second")}
    made = CloudStorageWriter("memory://m/first", store=lambda uri: places[uri.prefix.rpartition("/")[2]])
    made.reset("memory://m/second")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: Steps(made).set_up().write().finish()).result()
    assert ".metadata" in keys(places["second"])
    Steps(made).set_up().write().finish()
    assert made.checkpoint_id == "memory://m/second"


def test_every_event_reaches_the_hook_and_the_summary() -> None:
    """The hook hears of the plan, of every request and byte, and of both ends; last_save adds it up."""
    events: list[TransferEvent] = []
    store = RecordingStore(new_store())
    made = writer(store, on_event=events.append)
    dcp.save(STATE, storage_writer=made)
    assert [event.phase for event in events if isinstance(event, PhaseDone)] == ["save", "commit"]
    assert [event.items for event in events if isinstance(event, Planned)] == [2]
    stored = sum(meta.size_bytes for meta in store.list() if meta.key != ".metadata")
    assert sum(event.size_bytes for event in events if isinstance(event, Progressed)) == stored
    requests = [event.verb for event in events if isinstance(event, RequestDone)]
    assert requests == ["get", "get", "put", "put"]
    assert made.last_save is not None
    assert (made.last_save.size_bytes, made.last_save.items, made.last_save.requests) == (stored, 2, 1)


def test_a_failure_is_told_to_the_hook() -> None:
    """A failed phase ends with the name of its error."""
    events: list[TransferEvent] = []
    broken = faulty(new_store(), Fault("refuse", verb="put", key="*.distcp"))
    failure(dcp.save, STATE, storage_writer=writer(broken, on_event=events.append))
    assert [event.error for event in events if isinstance(event, PhaseDone)] == ["PermissionDeniedError"]


def test_a_writer_pickles_at_any_time() -> None:
    """A checkpoint process gets the writer for each save: in the middle of one, after a failure, as often as wanted."""
    steps = Steps(writer(new_store())).set_up().write()
    copies = [pickle.loads(pickle.dumps(steps.writer)) for _ in range(2)]
    ids = {made.storage_meta().save_id for made in [*copies, pickle.loads(pickle.dumps(copies[0]))]}
    assert len(ids) == 3
    assert copies[0].last_save == steps.writer.last_save
    steps.finish()


def test_transient_failures_are_repeated_and_counted() -> None:
    """Requests that fail in a way that passes are repeated; the summary says how often."""
    store = new_store()
    retry = RetryConfig(max_attempts=5, base_delay_s=0, max_delay_s=0)
    broken = faulty(store, Fault("fail", verb="put*", times=3), Fault("throttle", verb="get", times=2))
    made = writer(broken, transfer=TransferConfig(retry=retry))
    dcp.save(STATE, storage_writer=made)
    assert made.last_save is not None
    assert made.last_save.retries == 3
    load({"w": torch.zeros(1000), "n": 0}, store)


def test_the_classes_are_no_containers() -> None:
    """torch asks `if storage_writer:`; a class with a length or a truth value would be passed over."""
    for made in (writer(new_store()), CloudStorageReader(URI, store=new_store())):
        assert bool(made)
        assert not hasattr(made, "__len__")


def _calls(function: Callable[..., Any]) -> set[str]:
    return set(function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount + 2])


def test_torch_finds_the_parameter_called_kwargs() -> None:
    """torch passes rank and mode only to a parameter of that name."""
    assert "kwargs" in _calls(CloudStorageWriter.set_up_storage_writer)
    assert "kwargs" in _calls(CloudStorageReader.set_up_storage_reader)
    assert "kwargs" in _calls(CloudStorageReader.read_metadata)
