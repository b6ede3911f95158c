"""What ranks and processes of their own do in the tests of the manager."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from dcp_cloud import CheckpointManager, open_store
from dcp_cloud.testing import Fault, FaultyStore
from tests.checkpoint.rank_jobs import distributed


def tensors(step):
    return {"rows": torch.arange(13 * 6.0).view(13, 6) + step, "replicated": torch.full((5, 5), float(step))}


def loads(manager, expected_step, **options):
    """Load and say which step came, and whether it holds what was saved."""
    state = {**distributed(tensors(-1)), "step": -1}
    found = manager.restore(state, **options)
    expected = tensors(found)
    equal = all(torch.equal(state[name].full_tensor(), expected[name]) for name in expected)
    return found == expected_step == state["step"] and equal


def run_together(uri, async_mode):
    """Save in both ways, list, load and delete; every rank says what it saw."""
    with CheckpointManager(uri, keep_last=2, best_metric="loss", async_mode=async_mode) as manager:
        seen = [manager.latest()]
        for step in range(1, 6):
            save = manager.async_save if step % 2 else manager.save
            save(step, {**distributed(tensors(step)), "step": step}, {"loss": float(step)})
            dist.all_reduce(torch.ones(1))  # the training goes on, on the same ranks
        manager.wait()
        seen += [manager.latest(), [info.step for info in manager.list()], loads(manager, 5), loads(manager, 1, step=1)]
        manager.delete(4)
        seen.append([info.step for info in manager.list()])
        seen.append(manager.prune(dry_run=True).kept)
        return seen


def fail_together(uri):
    """One rank cannot store its part of a save in the background; every rank has to hear of it, and go on."""
    store = open_store(uri)
    if dist.get_rank() == 1:
        store = FaultyStore(store, faults=[Fault(kind="refuse", verb="put", key="step-2/*", times=None)])
    with CheckpointManager(uri, keep_last=1, max_in_flight=2, store=store) as manager:
        manager.async_save(1, distributed(tensors(1)))
        manager.async_save(2, distributed(tensors(2)))
        told = []
        for step in (3, 4, 5):
            try:
                manager.async_save(step, distributed(tensors(step)))
            except Exception as error:
                told.append(type(error).__name__)
        try:
            manager.wait()
        except Exception as error:
            told.append(type(error).__name__)
        return told, manager.latest()


def disagree(uri):
    """Each rank means another step."""
    with CheckpointManager(uri) as manager:
        try:
            manager.save(dist.get_rank(), distributed(tensors(0)))
        except Exception as error:
            return type(error).__name__, manager.latest()
    return None


class Slow(FaultyStore):
    """A store that holds up the data of step 2 until a file says go on."""

    def put(self, key, data, **options):
        if key.startswith("step-2/__"):
            Path(self.directory, "uploading").touch()
            until_s = time.monotonic() + self.hold_s
            while not Path(self.directory, "go").exists() and time.monotonic() < until_s:
                time.sleep(0.01)
        return super().put(key, data, **options)


def be_preempted(uri, directory, how):
    """Save step 1, begin step 2, and be ended by SIGTERM."""
    store = Slow(open_store(uri), faults=[])
    store.directory, store.hold_s = directory, 30.0 if how == "too slow" else 20.0
    manager = CheckpointManager(uri, store=store)
    state = {"w": torch.ones(1000)}
    if how == "former handler":
        signal.signal(signal.SIGTERM, lambda *_: (Path(directory, "former").touch(), sys.exit(7)))
    manager.on_preemption(2.0 if how == "too slow" else 60.0, stop=how != "loop")
    manager.save(1, state)
    if how == "foreground":
        manager.save(2, state)
        Path(directory, "not reached").touch()
    manager.async_save(2, state)
    while not manager.preempted:
        time.sleep(0.01)
    if how == "loop":
        manager.save(3, state)
        manager.close()
        os._exit(3)
    threading.Event().wait(60)


def be_preempted_on_a_bad_network(uri, directory, how):
    """Save step 1, say so, and save the next one when the network has gone bad, which then never ends by itself."""
    manager = CheckpointManager(uri, keep_last=1 if how == "retention" else None)
    state = {"w": torch.ones(1000)}
    manager.on_preemption(3.0)
    manager.save(1, state)
    Path(directory, "saved").touch()
    while not Path(directory, "go").exists():
        time.sleep(0.01)
    if how == "waiting":
        manager.async_save(2, state)
        manager.async_save(3, state)
        manager.save(4, state)
    elif how == "background":
        manager.async_save(2, state)
        threading.Event().wait(60)
    else:
        manager.save(2, state)
    Path(directory, "not reached").touch()


def lose_an_error(uri, how):
    """Fail in the background and end without ever asking."""
    store = FaultyStore(open_store(uri), faults=[Fault(kind="refuse", verb="put", key="step-1/*", times=None)])
    manager = CheckpointManager(uri, store=store)
    if how == "no log":
        logging.getLogger().addHandler(logging.NullHandler())
    elif how == "used again":
        manager.save(0, {"w": torch.ones(10)})
        manager.close()
    manager.async_save(1, {"w": torch.ones(10)})


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
