"""torch's checkpointers: dcp.async_save in a thread and in a process, and _Checkpointer."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._checkpointer import _Checkpointer

from dcp_cloud import CloudCheckpointer, CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.errors import ConfigError
from tests.checkpoint.states import equal, training_state

Place = Callable[..., str]


def test_all_methods_of_the_checkpointer_work(place: Place) -> None:
    """CloudCheckpointer is a _Checkpointer whose save, async_save and load all work."""
    uri, saved = place(), training_state(1)
    checkpointer = CloudCheckpointer(CloudStorageWriter(uri), CloudStorageReader(uri))
    assert isinstance(checkpointer, _Checkpointer)
    for save in (checkpointer.save, lambda state: checkpointer.async_save(state).result()):
        save(saved)
        loaded = training_state(2)
        checkpointer.load(loaded)
        assert equal(saved, loaded)


def test_torchs_checkpointer_saves_in_the_background_and_loads(place: Place) -> None:
    """torch's own class works with our writer and reader, but for its save, which is broken for everybody."""
    uri, saved = place(), training_state(1)
    checkpointer = _Checkpointer(CloudStorageWriter(uri), CloudStorageReader(uri))
    checkpointer.async_save(saved).result()
    loaded = training_state(2)
    checkpointer.load(loaded)
    assert equal(saved, loaded)
    with warnings.catch_warnings(), pytest.raises(TypeError, match="coordinator_rank"):
        warnings.simplefilter("ignore")
        checkpointer.save(saved)


def test_another_coordinator_is_refused() -> None:
    """dcp.save knows no coordinator_rank, so one that asks for it is told."""
    with pytest.raises(ConfigError, match="coordinator_rank"):
        CloudCheckpointer(CloudStorageWriter("memory://m"), CloudStorageReader("memory://m"), coordinator_rank=1)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_no_dist_works_or_is_refused(place: Place) -> None:
    """no_dist=True is passed on; with torch 2.6, which cannot do it, it is refused rather than dropped."""

    def make() -> CloudCheckpointer:
        return CloudCheckpointer(CloudStorageWriter(uri), CloudStorageReader(uri), no_dist=True)

    uri, loaded = place(), {"w": torch.zeros(10)}
    if "no_dist" not in inspect.signature(dcp.save).parameters:
        with pytest.raises(ConfigError, match="no_dist"):
            make()
        return
    make().save({"w": torch.ones(10)})
    make().load(loaded)
    assert loaded["w"].all()


def test_writers_and_readers_pickle_as_configuration(place: Place) -> None:
    """A used writer goes through a pipe without clients or secrets; each copy begins a save of its own."""
    uri = place()
    writer, reader = CloudStorageWriter(uri), CloudStorageReader(uri)
    dcp.save({"w": torch.ones(10)}, storage_writer=writer)
    loaded = {"w": torch.zeros(10)}
    dcp.load(loaded, storage_reader=reader)
    text = pickle.dumps(writer) + pickle.dumps(reader)
    assert b"testing123" not in text
    copies = [pickle.loads(pickle.dumps(writer)) for _ in range(2)]
    assert copies[0].storage_meta().save_id != copies[1].storage_meta().save_id
    for value, copy in enumerate(copies):
        dcp.save({"w": torch.full((10,), float(value))}, storage_writer=copy)
    dcp.load(loaded, storage_reader=pickle.loads(pickle.dumps(reader)))
    assert torch.equal(loaded["w"], torch.ones(10))


_UNAWAITED = """
import sys, torch, warnings
import torch.distributed.checkpoint as dcp
from dcp_cloud import CloudStorageWriter

warnings.simplefilter("ignore")
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
state = {f"w{i}": torch.full((1_000_000,), float(i)) for i in range(8)}
dcp.async_save(state, storage_writer=CloudStorageWriter(sys.argv[1]))
"""


def test_the_last_save_of_a_job_that_nobody_waits_for(place: Place, tmp_path: Path) -> None:
    """The main thread ends right after async_save; the checkpoint is committed while the interpreter shuts down."""
    uri = place(part_size="5MiB")
    done = subprocess.run(
        [sys.executable, "-c", _UNAWAITED, uri, str(tmp_path / "rendezvous")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ".metadata" in {meta.key for meta in open_store(uri).list()}, done.stderr
    loaded = {"w7": torch.zeros(1_000_000)}
    dcp.load(loaded, storage_reader=CloudStorageReader(uri))
    assert loaded["w7"].eq(7).all()
