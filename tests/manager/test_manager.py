"""The manager in one process: saving, finding, loading, deleting."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import wait

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from dcp_cloud import CheckpointManager, open_store
from dcp_cloud.checkpoint.sweep import sweep
from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.errors import (
    CheckpointNotFoundError,
    CommitConflictError,
    ConfigError,
    CorruptCheckpointError,
    PermissionDeniedError,
    StateDictMismatchError,
)
from dcp_cloud.stores.base import IfAbsent
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.testing import Fault, FaultyStore, SimulatedCrash
from dcp_cloud.testing.wrappers import StoreWrapper
from tests.checkpoint.conftest import every_cloud
from tests.support.ranks import start_fork_server

ID = "0123456789abcdef" * 2


def state(step):
    return {"model": {"w": torch.arange(2000.0) + step, "b": torch.full((3,), step)}, "step": step}


def empty():
    return {"model": {"w": torch.zeros(2000), "b": torch.zeros(3, dtype=torch.int64)}, "step": -1}


def steps_of(manager):
    return [info.step for info in manager.list()]


def assert_restores(manager, expected, **options):
    found = empty()
    assert manager.restore(found, **options) == expected
    assert found["step"] == expected
    assert torch.equal(found["model"]["w"], state(expected)["model"]["w"])


def keys(store):
    return sorted(meta.key for meta in store.list())


memory_and_file = pytest.mark.parametrize("place", ["memory", "file"], indirect=True)


def check_a_run(uri):
    """Save ten steps, some in the background; see that all is as the policy says, and what is left loads."""
    with CheckpointManager(uri, keep_last=2, keep_every=40, best_metric="loss", max_in_flight=2) as manager:
        assert manager.latest() is None
        for step in range(10, 110, 10):
            save = manager.save if step % 30 == 0 else manager.async_save
            save(step, state(step), {"loss": abs(step - 33), "more": torch.tensor(step)})
        manager.wait()
        assert steps_of(manager) == [30, 40, 80, 90, 100]
        assert manager.latest() == 100
        assert manager.last_retention.error is None
        infos = {info.step: info for info in manager.list()}
        assert infos[30].metrics == {"loss": 3.0, "more": 30.0}
        assert all(info.size_bytes > 8000 and info.committed_at is not None for info in infos.values())
        assert_restores(manager, 100)
        assert_restores(manager, 40, step=40)
        manager.delete(90)
        assert steps_of(manager) == [30, 40, 80, 100]
    store = open_store(uri)
    assert {key.partition("/")[0] for key in keys(store)} == {"step-30", "step-40", "step-80", "step-100"}
    assert not sweep(store, older_than_s=0, dry_run=True).orphans
    store.close()


@memory_and_file
def test_a_run(place):
    """Steps are saved, found, loaded and deleted as the policy says, and nothing else is left."""
    check_a_run(place("run"))


@every_cloud
def test_a_run_on_a_server(place):
    """The same holds on a real server of each cloud."""
    check_a_run(place("run"))


@memory_and_file
def test_torch_reads_it_and_metrics_do_not_matter_to_it(place, tmp_path):
    """A step with metrics is an ordinary checkpoint: torch's own reader loads it from a copy."""
    with CheckpointManager(place("run")) as manager:
        manager.save(7, state(7), {"loss": 1})
        store = open_store(manager.uri + "/step-7")
        for meta in store.list():
            (tmp_path / meta.key).write_bytes(store.get(meta.key, max_bytes=meta.size_bytes).data)
    found = empty()
    dcp.load(found, storage_reader=FileSystemReader(tmp_path))
    assert torch.equal(found["model"]["w"], state(7)["model"]["w"])


def test_only_committed_checkpoints_count(place):
    """Data without a commit, other directories and other spellings are no steps."""
    uri = place("run")
    with CheckpointManager(uri, keep_last=1) as manager:
        manager.save(5, state(5))
        store = open_store(uri)
        for key in (f"step-9/__0_0.{ID}.distcp", "step-07/.metadata", "notes/.metadata", "step-8.txt"):
            store.put(key, [memoryview(b"x")])
        assert manager.latest() == 5
        assert_restores(manager, 5)
        manager.save(6, state(6))
        assert steps_of(manager) == [6]
        assert {"step-07/.metadata", "notes/.metadata", f"step-9/__0_0.{ID}.distcp"} <= set(keys(store))
        store.close()


def test_a_stale_listing_is_harmless():
    """What was just saved is found although listings do not show it, and what is gone is not found though they do."""
    store = FaultyStore(
        open_store("memory://stale/run"), faults=[Fault(kind="stale_list", verb="list*", nth=2, times=None)]
    )
    with CheckpointManager("memory://stale/run", store=store) as manager:
        manager.save(1, state(1))
        assert manager.latest() == 1  # the first listing is right, and is repeated from then on
        manager.save(2, state(2))
        assert manager.latest() == 2
        assert_restores(manager, 2)
        manager.delete(2)
        assert manager.latest() == 1


def test_nothing_there_is_an_error_that_says_so(place):
    """Restoring from an empty place, or a step that is not there, raises and names the place."""
    with CheckpointManager(place("run")) as manager:
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint is committed"):
            manager.restore(empty())
        manager.save(1, state(1))
        with pytest.raises(CheckpointNotFoundError, match="step 3"):
            manager.restore(empty(), step=3)
        with pytest.raises(CheckpointNotFoundError):
            manager.delete(3)


@pytest.mark.parametrize("damage", ["data", "metadata", "missing"])
def test_damage_is_not_passed_over_in_silence(place, damage, caplog):
    """A damaged latest checkpoint raises and names the one before; only fall_back loads that, and says so."""
    uri = place("run")
    with CheckpointManager(uri) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
        store = open_store(f"{uri.partition('?')[0]}/step-3?{uri.partition('?')[2]}")
        data = next(key for key in keys(store) if key.endswith(".distcp"))
        if damage == "missing":
            store.delete([data])
        else:
            key = data if damage == "data" else ".metadata"
            content = bytearray(store.get(key, max_bytes=10**6).data)
            content[len(content) // 2] ^= 1
            store.put(key, [memoryview(content if damage == "data" else content[:100])])
        store.close()
        for step in (None, 3):
            with pytest.raises(Exception, match=r"restore\(state_dict, step=2\)") as caught:
                manager.restore(empty(), step)
            assert type(caught.value).__name__ in ("CorruptCheckpointError", "IncompleteCheckpointError")
        assert_restores(manager, 2, fall_back=True)
        assert "going back to step 2" in caplog.text
        with pytest.raises(StateDictMismatchError):
            manager.restore({"other": torch.zeros(1)}, fall_back=True)


def test_retention_stops_at_a_damaged_newest_checkpoint(place):
    """If the newest is damaged the older ones may be the last good ones: none of them is deleted."""
    uri = place("run")
    with CheckpointManager(uri) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
    store = open_store(uri)
    store.delete([key for key in keys(store) if key.startswith("step-3/__")])
    with CheckpointManager(uri, keep_last=1) as manager:
        with pytest.raises(CorruptCheckpointError, match="nothing was deleted"):
            manager.prune()
        assert manager.list()[0].step == 1
        manager.save(4, state(4))  # this one is known to be whole
        assert steps_of(manager) == [4]
    store.close()


def test_dry_run_deletes_nothing_and_says_what_it_would(place):
    """With dry_run the report has the verdicts with their reasons, and everything stays."""
    uri = place("run")
    with CheckpointManager(uri, keep_last=1, dry_run=True) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
        assert steps_of(manager) == [1, 2, 3]
        report = manager.last_retention
        assert (report.dry_run, report.doomed, report.deleted) == (True, (1, 2), ())
        assert manager.prune().deleted == ()
    with CheckpointManager(uri, keep_last=1) as manager:
        assert manager.prune(dry_run=True).doomed == (1, 2)
        assert manager.prune().deleted == (1, 2)
        assert manager.prune().deleted == ()


def test_going_back_is_possible_and_said(place, caplog):
    """A save of a lower step than the latest is kept, and the log says which step is still the latest."""
    with CheckpointManager(place("run"), keep_last=2) as manager:
        for step in (100, 200, 150):
            manager.save(step, state(step))
        assert manager.latest() == 200
        assert 150 in steps_of(manager)
    assert "the latest is still 200" in caplog.text


def test_a_failing_retention_does_not_fail_the_save(caplog):
    """When nothing may be deleted the save is made all the same, and the trouble is logged and reported."""
    store = FaultyStore(open_store("memory://refusing/run"), faults=[Fault(kind="refuse", verb="delete", times=None)])
    with CheckpointManager("memory://refusing/run", keep_last=1, store=store) as manager:
        manager.save(1, state(1))
        manager.save(2, state(2))
        assert isinstance(manager.last_retention.error, PermissionDeniedError)
        assert manager.latest() == 2
    assert "not everything that the policy does not keep was deleted" in caplog.text


def crash_and_recover(nth, when):
    """Let retention crash at its nth change of the store; return whether it got so far."""
    name = f"crash-{nth}-{when}"
    inner = open_store(f"memory://{name}/run")
    with CheckpointManager(f"memory://{name}/run", store=inner) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
    faults = [Fault(kind="crash", verb=verb, nth=nth, when=when) for verb in ("put", "delete")]
    faulty = FaultyStore(inner, faults=faults)
    with CheckpointManager(f"memory://{name}/run", keep_last=1, store=faulty) as manager:
        try:
            manager.prune()
        except SimulatedCrash:
            pass
        else:
            return False
    for prefix in inner.list_prefixes():
        at = PrefixStore(inner, prefix)
        if any(meta.key == ".metadata" for meta in at.list()):
            assert not verify_checkpoint(at).problems
    with CheckpointManager(f"memory://{name}/run", keep_last=1, store=inner) as manager:
        assert manager.latest() == 3
        manager.prune()
        assert {key.partition("/")[0] for key in keys(inner)} == {"step-3"}
        assert_restores(manager, 3)
    return True


@pytest.mark.parametrize("when", ["before", "after"])
def test_retention_survives_a_crash_at_any_point(when):
    """Wherever retention breaks off, what has a commit is whole, and the next run deletes the rest at once."""
    crashed = [crash_and_recover(nth, when) for nth in range(1, 8)]
    assert crashed[:2] == [True, True]
    assert crashed[-1] is False


def prune_and_die(uri):
    store = FaultyStore(open_store(uri), faults=[Fault(kind="kill", verb="delete", nth=2)])
    CheckpointManager(uri, keep_last=1, store=store).prune()


def test_retention_is_finished_after_a_kill(place):
    """What a process leaves that is killed by SIGKILL between the commit and the data, the next one deletes."""
    uri = place("run")
    with CheckpointManager(uri) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
        process = start_fork_server().Process(target=_in_process, args=(dict(os.environ), uri))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert manager.latest() == 3
        store = open_store(uri)
        assert any(key.startswith("step-1/") for key in keys(store))
        assert "step-1/.metadata" not in keys(store)
    with CheckpointManager(uri, keep_last=1) as manager:
        report = manager.prune()
        assert (report.deleted, report.finished) == ((2,), (1,))
    assert {key.partition("/")[0] for key in keys(store)} == {"step-3"}
    store.close()


def _in_process(environment, uri):
    os.environ.update(environment)
    prune_and_die(uri)


@pytest.mark.parametrize("trace", ["object", "upload"])
def test_a_step_that_another_job_writes_is_left_alone(trace):
    """Data or an upload that the commit does not name is another save's: the step stays until that has gone stale."""
    uri = f"memory://busy-{trace}/run"
    store = open_store(uri)
    with CheckpointManager(uri) as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
    key = f"step-1/__0_0.{ID}.distcp"
    if trace == "object":
        store.put(key, [memoryview(b"x")])
    else:
        upload = store.create_multipart(key)
    with CheckpointManager(uri, keep_last=1) as manager:
        report = manager.prune()
        assert (report.deleted, [one.step for one in report.skipped]) == ((2,), [1])
        assert isinstance(report.skipped[0].error, CommitConflictError)
        with pytest.raises(CommitConflictError):
            manager.delete(1)
        assert_restores(manager, 1, step=1)
    with CheckpointManager(uri, keep_last=1, stale_after_s=0) as manager:
        assert manager.prune().deleted == (1,)
    if trace == "object":
        assert key in keys(store)  # what the other save wrote is not ours to delete
    else:
        upload.abort()


def test_a_step_that_is_saved_anew_meanwhile_stays(place):
    """If another job commits to a step between the decision and the removal, its checkpoint is not touched."""
    uri = place("run")
    inner = open_store(uri)
    other = CheckpointManager(uri, store=inner)

    class Racing(FaultyStore):
        def put(self, key, data, **options):
            if ".distcp" in key and key.startswith("step-1/"):  # the mark: the decision has been made
                other.save(1, state(1))
            return inner.put(key, data, **options)

    with CheckpointManager(uri) as manager:
        for step in (1, 2):
            manager.save(step, state(step))
    with CheckpointManager(uri, keep_last=1, store=Racing(inner, faults=[])) as manager:
        report = manager.prune()
        assert (report.deleted, [one.step for one in report.skipped]) == ((), [1])
        assert_restores(manager, 1, step=1)
    assert not verify_checkpoint(PrefixStore(inner, "step-1")).problems
    other.close()


@pytest.mark.parametrize("place", ["memory", "file", "moto", "azurite"], indirect=True)
def test_a_step_that_is_saved_anew_after_the_last_look_stays(place):
    """A commit that another job makes between retention's last look and its deletion is not the one that goes.

    Not on Ceph and fake-gcs-server, which delete whatever is there.
    """
    uri = place("run")
    inner = open_store(uri)
    other = CheckpointManager(uri, store=inner)

    class Racing(StoreWrapper):
        def around(self, request, run):
            if request.verb == "delete" and request.key == "step-1/.metadata":
                other.save(1, state(1))
            return run()

    with CheckpointManager(uri) as manager:
        for step in (1, 2):
            manager.save(step, state(step))
    with CheckpointManager(uri, keep_last=1, store=Racing(inner)) as manager:
        report = manager.prune()
        assert (report.deleted, [one.step for one in report.skipped]) == ((), [1])
        assert_restores(manager, 1, step=1)
    assert not verify_checkpoint(PrefixStore(inner, "step-1")).problems
    assert not [key for key in keys(inner) if "__0_999999999." in key]
    other.close()


def test_two_jobs_with_retention_do_not_get_in_each_others_way(place):
    """Two jobs that save and prune in one place each get their steps in, and the newest is there in the end."""
    uri = place("run")
    with (
        CheckpointManager(uri, keep_last=2, max_in_flight=3) as one,
        CheckpointManager(uri, keep_last=2, max_in_flight=3) as two,
    ):
        for step in range(1, 13):
            (one if step % 2 else two).async_save(step, state(step))
        one.wait()
        two.wait()
        one.prune()
        assert steps_of(two) == [11, 12]
        assert_restores(two, 12)


def test_another_retention_that_ends_meanwhile_breaks_nothing_off():
    """A mark that somebody else deletes between the listing and the look into it is no failure."""
    uri = "memory://marks/run"
    inner = open_store(uri)
    mark = f"step-1/__0_999999999.{'a' * 32}.distcp"

    class Ending(StoreWrapper):
        def around(self, request, run):
            if request.verb == "get" and request.key == mark:
                inner.delete([mark])
            return run()

    with CheckpointManager(uri, store=inner) as manager:
        for step in range(1, 5):
            manager.save(step, state(step))
    inner.put(mark, [memoryview(b"[]")])
    with CheckpointManager(uri, keep_last=1, store=Ending(inner)) as manager:
        report = manager.prune()
        assert (report.deleted, report.error) == ((1, 2, 3), None)


def test_a_forged_mark_deletes_nothing_that_a_commit_names(place):
    """Whatever somebody writes into a mark, only data beside it without a commit can go."""
    uri = place("run")
    with CheckpointManager(uri, keep_last=1) as manager:
        manager.save(1, state(1))
        store = open_store(uri)
        named = [key for key in keys(store) if key.endswith(".distcp")]
        names = [name for key in named for name in (key, key.partition("/")[2])] + ["../step-1/.metadata", ".metadata"]
        for content in (json.dumps([*names, 7]).encode(), b"{", b"[" * 100_000, b"\xff"):
            for step in (1, 5):
                mark = f"step-{step}/__0_999999999.{ID}.distcp"
                store.delete([mark])
                store.put(mark, [memoryview(content)], condition=IfAbsent())
            manager.prune()
        assert_restores(manager, 1)
        store.close()


def test_checkpoints_of_other_writers_are_kept_and_deleted_too(tmp_path):
    """What torch's own writer saved under the same names is found, loaded and deleted as well."""
    for step in (1, 2):
        dcp.save(state(step), storage_writer=FileSystemWriter(tmp_path / f"step-{step}"))
    with CheckpointManager(tmp_path, keep_last=1) as manager:
        assert_restores(manager, 2)
        assert manager.prune().deleted == (1,)
        assert steps_of(manager) == [2]
        assert not list(tmp_path.glob("step-1/*"))


@pytest.mark.parametrize(
    "options",
    [
        {"async_mode": "fork"},
        {"max_in_flight": 0},
        {"async_mode": "process"},
        {"stale_after_s": -1},
        {"name": "step"},
        {"keep_last": 0},
        {"best_metric": "loss", "best_mode": "least"},
    ],
)
def test_settings_that_make_no_sense_are_refused(options):
    """Nothing is sent before the settings are right."""
    with pytest.raises(ConfigError):
        CheckpointManager("memory://m/run", **options)


@pytest.mark.parametrize("metrics", [{"a": "x"}, {"a": torch.zeros(2)}, {"": 1}, {"a" * 201: 1}])
def test_metrics_that_are_none_are_refused(metrics):
    """A metric is one number with a name."""
    manager = CheckpointManager("memory://m/run")
    with pytest.raises(ConfigError):
        manager.save(1, state(1), metrics)
    assert manager.latest() is None
    manager.close()


def test_without_the_background_async_save_saves(place):
    """With async_mode=None the future is done when it is returned."""
    with CheckpointManager(place("run"), async_mode=None) as manager:
        future = manager.async_save(1, state(1))
        assert not wait([future], 0).not_done
        assert manager.latest() == 1
