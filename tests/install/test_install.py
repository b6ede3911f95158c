"""Bare checkpoint ids: which are ours, which stay torch's, and that nothing is left of it afterwards."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

import dcp_cloud
from dcp_cloud import CloudStorageReader, CloudStorageWriter, StoreURI, TransferConfig
from dcp_cloud.errors import CheckpointExistsError, ConfigError, InvalidURIError, UnknownOptionError
from dcp_cloud.transfer.events import PhaseDone, TransferEvent
from tests.checkpoint import rank_jobs
from tests.checkpoint.conftest import every_cloud
from tests.install import jobs
from tests.support.ranks import run_ranks

Place = Callable[..., str]

# What torch 2.6 says of its own writer.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")

MODULES = ("_storage_utils", "state_dict_saver", "state_dict_loader")


def parts() -> list[Any]:
    """Everything of torch's that install may replace."""
    modules = [importlib.import_module(f"torch.distributed.checkpoint.{name}") for name in MODULES]
    found = [module._storage_setup for module in modules]
    if rank_jobs.HAS_PROCESS_SAVES:
        executor = importlib.import_module("torch.distributed.checkpoint._async_process_executor")
        found.append(executor._ProcessBasedAsyncCheckpointExecutor.__dict__["execute_save"])
    return found


def setup(checkpoint_id: object, *, reader: bool = False) -> Any:
    """Let torch choose, as dcp.save and dcp.load do."""
    from torch.distributed.checkpoint import state_dict_saver

    return state_dict_saver._storage_setup(None, checkpoint_id, reader=reader)


@pytest.fixture(autouse=True)
def _uninstall() -> Iterator[None]:
    before = parts()
    yield
    dcp_cloud.uninstall()
    assert all(now is then for now, then in zip(parts(), before, strict=True))


@every_cloud
def test_ranks_save_and_load_by_uri_alone(place: Place) -> None:
    """Two ranks save; one, two and four load, on each provider."""
    uri = place()
    run_ranks(2, jobs.save, uri, 1)
    for world_size in (1, 2, 4):
        assert run_ranks(world_size, jobs.load, uri, 1) == [[]] * world_size


@every_cloud
def test_background_saves_pick_our_writer(place: Place) -> None:
    """Also in the checkpoint process, where nothing is installed; a failing one is told by its type."""
    uris = {kind: place(kind) for kind in ("thread", "process")[: 1 + rank_jobs.HAS_PROCESS_SAVES]}
    missing = uris["thread"].replace(StoreURI.parse(uris["thread"]).bucket, "no-such-bucket-anywhere")
    for kind, uri in uris.items():
        outcomes = run_ranks(2, jobs.background, [missing, uri], kind, timeout_s=120)
        assert outcomes == [["BucketNotFoundError", "ok"]] * 2
        assert run_ranks(1, rank_jobs.load_tensors, uri, 1) == [[]]


def test_installing_twice_and_uninstalling_restores_exactly() -> None:
    """The very functions that were there are there again, however often it was installed, from however many threads."""
    before = parts()
    threads = [threading.Thread(target=dcp_cloud.install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(now is not then for now, then in zip(parts(), before, strict=True))
    assert isinstance(setup("memory://m/run"), CloudStorageWriter)
    assert isinstance(setup("memory://m/run", reader=True), CloudStorageReader)
    dcp_cloud.uninstall()
    dcp_cloud.uninstall()
    assert all(now is then for now, then in zip(parts(), before, strict=True))


@pytest.mark.parametrize("kind", [str, Path])
def test_local_paths_stay_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """A text or a path object that names a directory is served by torch's own classes, relative ones too."""
    monkeypatch.chdir(tmp_path)
    dcp_cloud.install()
    for path in (kind(tmp_path / "a"), kind("b"), kind("./c"), kind("deep/s3/d")):
        assert type(setup(path)) is FileSystemWriter
        dcp.save({"x": torch.ones(2)}, checkpoint_id=path)
        assert type(setup(path, reader=True)) is FileSystemReader
        state = {"x": torch.zeros(2)}
        dcp.load(state, checkpoint_id=path)
        assert torch.equal(state["x"], torch.ones(2))


def test_explicit_writers_and_readers_are_left_alone(tmp_path: Path) -> None:
    """Whoever passes a writer gets that writer, moved to the checkpoint id as torch does."""
    dcp_cloud.install()
    writer = FileSystemWriter(tmp_path / "a")
    dcp.save({"x": torch.ones(2)}, storage_writer=writer, checkpoint_id=tmp_path / "b")
    assert (tmp_path / "b" / ".metadata").exists()


def test_a_path_object_that_was_a_uri_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would write to a local directory called ``s3:``."""
    monkeypatch.chdir(tmp_path)
    dcp_cloud.install()
    with pytest.raises(InvalidURIError, match="lost a slash"):
        setup(Path("s3://bucket/run"))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_uri_is_told_and_not_left_to_fsspec() -> None:
    """torch alone would try fsspec and complain of a missing package."""
    dcp_cloud.install()
    with pytest.raises(UnknownOptionError, match="part_size"):
        setup("s3://bucket/run?part_sise=5MiB")
    with pytest.raises(ConfigError):
        setup("gs:///run")


@pytest.mark.parametrize("has_fsspec", [True, False])
def test_a_scheme_that_nobody_serves_is_told(monkeypatch: pytest.MonkeyPatch, *, has_fsspec: bool) -> None:
    """With or without fsspec, the message names the schemes that there are, and no secret of the URI."""
    if not has_fsspec:
        monkeypatch.setitem(sys.modules, "torch.distributed.checkpoint._fsspec_filesystem", None)
    dcp_cloud.install()
    with pytest.raises(ConfigError, match="Use s3://, gs://, az://") as caught:
        setup("nosuchscheme://user:secret@host/run")
    assert "secret" not in str(caught.value)


def test_no_checkpoint_id_is_torchs_own_error() -> None:
    """What torch says of a missing id stays as it is."""
    dcp_cloud.install()
    with pytest.raises(RuntimeError, match="`checkpoint_id` must be"):
        setup(None)


def test_settings_given_once_serve_all() -> None:
    """transfer, overwrite and on_event reach every save; installing again changes them."""
    events: list[TransferEvent] = []
    uri = "memory://settings/run"
    dcp_cloud.install(transfer=TransferConfig(max_concurrency=3), overwrite=False, on_event=events.append)
    dcp.save({"x": torch.ones(2)}, checkpoint_id=uri)
    assert any(isinstance(event, PhaseDone) and event.phase == "commit" for event in events)
    assert setup(uri)._location.transfer.max_concurrency == 3
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"x": torch.ones(2)}, checkpoint_id=uri)
    assert isinstance(caught.value.failures[0][0], CheckpointExistsError)
    dcp_cloud.install()
    dcp.save({"x": torch.ones(2)}, checkpoint_id=uri)
