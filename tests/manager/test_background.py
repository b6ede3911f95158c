"""Saves in the background: their order, their failures, several ranks, and being told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dcp_cloud import CheckpointManager, open_store
from dcp_cloud.errors import CommitConflictError, PermissionDeniedError
from dcp_cloud.testing import Fault, FaultyStore
from dcp_cloud.testing.proxy import FaultProxy, NetworkFault
from tests.checkpoint.rank_jobs import HAS_PROCESS_SAVES
from tests.manager.jobs import disagree, fail_together, run_together
from tests.support.ranks import run_ranks

_ROOT = Path(__file__).resolve().parents[2]


def state(step):
    return {"w": torch.full((100,), float(step))}


def refusing(name, key="*", **options):
    return FaultyStore(
        open_store(f"memory://{name}/run"), faults=[Fault(kind="refuse", verb="put", key=key, times=None, **options)]
    )


@pytest.mark.parametrize("call", ["save", "async_save", "restore", "delete", "prune", "wait", "close"])
def test_a_failure_in_the_background_is_raised_by_the_next_call(call):
    """Whatever is called next raises it, with its own type, once."""
    manager = CheckpointManager(f"memory://fails-{call}/run", store=refusing(f"fails-{call}", "step-1/*"))
    manager.async_save(1, state(1))
    manager._in_flight.drain()
    calls = {
        "save": lambda: manager.save(2, state(2)),
        "async_save": lambda: manager.async_save(2, state(2)),
        "restore": lambda: manager.restore(state(0)),
        "delete": lambda: manager.delete(1),
    }
    with pytest.raises(PermissionDeniedError):
        calls.get(call, getattr(manager, call))()
    manager.save(3, state(3))
    assert manager.latest() == 3
    manager.close()


def test_a_failure_that_was_heard_of_is_not_raised_again():
    """Who asks the future knows, and the next call goes on."""
    manager = CheckpointManager("memory://heard/run", store=refusing("heard", "step-1/*"))
    future = manager.async_save(1, state(1))
    with pytest.raises(PermissionDeniedError):
        future.result(60)
    manager.save(2, state(2))
    manager.close()


def test_a_failure_is_raised_at_the_end_of_the_context():
    """The last save of a job cannot fail unheard, and an error that is on its way is not hidden by it."""
    with pytest.raises(PermissionDeniedError), CheckpointManager("memory://end/run", store=refusing("end")) as manager:
        manager.async_save(1, state(1))
    with pytest.raises(ZeroDivisionError), CheckpointManager("memory://end/run", store=refusing("end")) as manager:
        manager.async_save(1, state(1))
        raise ZeroDivisionError


@pytest.mark.parametrize("how", ["plain", "no log", "used again"])
def test_a_failure_is_told_at_the_exit_of_the_process(tmp_path, how):
    """A script that ends without asking reads on standard error, once, which step was not saved; its code stays 0."""
    args = [sys.executable, "-m", "tests.manager.jobs", "lose_an_error", f"file://{tmp_path}", how]
    ran = subprocess.run(args, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.stderr.count("step 1 was not saved, and nobody asked") == 1
    assert ran.returncode == 0


def test_saves_are_made_one_after_the_other_and_no_more_wait_than_allowed():
    """With two in flight the third waits for the first; they are committed in the order in which they were begun."""
    go, order, uri = threading.Event(), [], "memory://queue/run"

    class Gate(FaultyStore):
        def put(self, key, data, **options):
            assert go.wait(60)
            order.append(key.partition("/")[0])
            return super().put(key, data, **options)

    with CheckpointManager(uri, max_in_flight=2, store=Gate(open_store(uri), faults=[])) as manager:
        first, second = manager.async_save(1, state(1)), manager.async_save(2, state(2))
        third_began = threading.Event()
        releaser = threading.Thread(target=lambda: (third_began.wait(0.3), go.set()))
        assert not first.done()
        assert not second.done()
        releaser.start()
        manager.async_save(3, state(3))
        third_began.set()
        assert first.done()
        releaser.join()
    assert order == ["step-1", "step-1", "step-2", "step-2", "step-3", "step-3"]


def test_the_copy_is_made_before_the_call_returns():
    """What the training does to its tensors afterwards is not in the checkpoint."""
    with CheckpointManager("memory://copy/run", max_in_flight=3) as manager:
        live = state(1)
        for step in (1, 2, 3):
            live["w"].fill_(step)
            manager.async_save(step, live)
        live["w"].fill_(-1)
        for step in (1, 2, 3):
            found = state(0)
            manager.restore(found, step)
            assert torch.equal(found["w"], state(step)["w"])


def test_a_conflict_keeps_its_type():
    """If another job commits the same step meanwhile, the future raises that, not torch's bundle of failures."""
    uri = "memory://conflict/run"
    other = CheckpointManager(uri)

    class Racing(FaultyStore):
        def put(self, key, data, **options):
            if key.endswith(".distcp"):
                other.save(1, state(7))
            return super().put(key, data, **options)

    with CheckpointManager(uri, store=Racing(open_store(uri), faults=[])) as manager:
        with pytest.raises(CommitConflictError):
            manager.async_save(1, state(1)).result(60)
        with pytest.raises(CommitConflictError):
            manager.save(1, state(1))
        found = state(0)
        manager.restore(found)
        assert torch.equal(found["w"], state(7)["w"])


@pytest.mark.parametrize("async_mode", ["thread", pytest.param("process", marks=pytest.mark.timeout(300))])
def test_ranks_see_the_same(place, async_mode):
    """Two ranks save, find, load and delete together, whatever runs beside it, and hear the same answers."""
    if async_mode == "process" and not HAS_PROCESS_SAVES:
        with pytest.raises(AssertionError, match="ConfigError"):
            run_ranks(2, run_together, place("run"), async_mode)
        return
    seen = run_ranks(2, run_together, place("run"), async_mode)
    assert seen[0] == [None, 5, [1, 4, 5], True, True, [1, 5], (1, 5)]
    assert seen[1] == seen[0]


def test_a_failure_of_one_rank_is_raised_on_all(place):
    """No rank goes on alone: the failed save is raised on each of them, once, at the same call."""
    outcomes = run_ranks(2, fail_together, place("run"))
    assert outcomes[0] == outcomes[1]
    told, latest = outcomes[0]
    assert told == ["PermissionDeniedError"]
    assert latest == 5


def test_ranks_that_mean_different_steps_are_told(place):
    """A save for which each rank gives another step is refused before anything is sent."""
    assert run_ranks(2, disagree, place("run")) == [("ConfigError", None)] * 2


def terminate(tmp_path, how, *, go):
    """Run a job, send it SIGTERM while step 2 is on its way, and return its exit code."""
    uri, directory = f"file://{tmp_path}/run", tmp_path / "signs"
    directory.mkdir()
    args = [sys.executable, "-m", "tests.manager.jobs", "be_preempted", uri, str(directory), how]
    with subprocess.Popen(args, cwd=_ROOT, env=os.environ.copy()) as process:
        deadline_s = time.monotonic() + 60
        while not (directory / "uploading").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        if go:
            time.sleep(0.1)  # long enough for the signal; the upload waits for the file in any case
            (directory / "go").touch()
        code = process.wait(60)
    with CheckpointManager(uri) as manager:
        return code, [info.step for info in manager.list()], {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("how", "go", "code", "steps"),
    [
        ("background", True, -signal.SIGTERM, [1, 2]),
        ("foreground", True, -signal.SIGTERM, [1, 2]),
        ("too slow", False, -signal.SIGTERM, [1]),
        ("former handler", True, 7, [1, 2]),
        ("loop", True, 3, [1, 2, 3]),
    ],
)
def test_sigterm_ends_in_order(tmp_path, how, go, code, steps):
    """The save under way is finished if there is time, else given up; then the former handler gets the signal."""
    ended, found, signs = terminate(tmp_path, how, go=go)
    assert (ended, found) == (code, steps)
    assert "not reached" not in signs
    assert ("former" in signs) == (how == "former handler")


def network_fault(kind, method, path, **options):
    return NetworkFault(kind, method=method, path=path, times=None, **options)


@pytest.mark.parametrize(
    ("how", "fault", "steps"),
    [
        ("begin", network_fault("status", "GET", "*step-2/*", status=503, code="SlowDown"), [1]),
        ("begin, stalled", network_fault("stall", "GET", "*step-2/*"), [1]),
        ("data", network_fault("stall", "PUT", "*step-2/*.distcp"), [1]),
        ("commit", network_fault("stall", "PUT", "*step-2/.metadata"), [1]),
        ("commit", network_fault("stall", "PUT", "*step-2/.metadata", side="response"), [1, 2]),
        ("background", network_fault("stall", "PUT", "*step-2/.metadata"), [1]),
        ("waiting", network_fault("status", "GET", "*step-[234]/*", status=503, code="SlowDown"), [1]),
        ("retention", network_fault("stall", "DELETE", "*step-1/*"), [1, 2]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sigterm_ends_in_time_whatever_a_save_waits_for(how, fault, steps, bucket_uri, servers, tmp_path):
    """A save that the network holds up ends by the deadline, in each of its phases, and leaves whole steps only."""
    uri, server = bucket_uri("moto"), servers("moto")
    with FaultProxy(server.endpoint_url) as proxy:
        bucket = uri.removeprefix("s3://").partition("/")[0]
        behind = proxy.in_front_of(server)
        args = [sys.executable, "-m", "tests.manager.jobs", "be_preempted_on_a_bad_network"]
        args += [behind.uri(bucket, "run", max_attempts="1000"), str(tmp_path), how]
        environment = {**os.environ, **behind.environment}
        with subprocess.Popen(args, cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: (tmp_path / "saved").exists() or process.poll() is not None)
            proxy.set_faults(fault)
            (tmp_path / "go").touch()
            wait_until(lambda: proxy.strikes or process.poll() is not None)
            began_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            try:
                _, told = process.communicate(timeout=60)
            finally:
                process.kill()
            took_s = time.monotonic() - began_s
    assert process.returncode == -signal.SIGTERM, told
    assert took_s < 15, told  # 3 s, and a busy machine; without a deadline it would be minutes
    assert not (tmp_path / "not reached").exists()
    with CheckpointManager(uri) as manager:
        assert [info.step for info in manager.list()] == steps
        for step in steps:
            manager.restore(state(0) | {"w": torch.zeros(1000)}, step)


def wait_until(is_so):
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
