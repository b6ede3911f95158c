"""torch reads what this package writes, and this package reads what torch writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dcp_cloud import open_store
from tests.checkpoint.conftest import every_store
from tests.checkpoint.states import equal, odd_tensors, training_state, zeros_like
from tests.checkpoint.test_round_trip import load, save

Place = Callable[..., str]


def download(uri: str, directory: Path) -> None:
    store = open_store(uri)
    directory.mkdir()
    for meta in store.list():
        (directory / meta.key).write_bytes(store.get(meta.key, max_bytes=max(meta.size_bytes, 1)).data)


def upload(directory: Path, uri: str) -> None:
    store = open_store(uri)
    for name in os.listdir(directory):
        store.put(name, [memoryview((directory / name).read_bytes())])


@every_store
def test_torch_opens_what_we_wrote(place: Place, tmp_path: Path) -> None:
    """A downloaded checkpoint is opened by FileSystemReader and by dcp_to_torch_save."""
    saved, uri = {**training_state(1), "odd": odd_tensors(), "large": torch.randn(3_000_000)}, place()
    save(saved, uri)
    download(uri, tmp_path / "copy")
    loaded = {**training_state(2), "odd": zeros_like(odd_tensors()), "large": torch.zeros(3_000_000)}
    dcp.load(loaded, storage_reader=FileSystemReader(tmp_path / "copy"))
    assert equal(saved, loaded)
    dcp_to_torch_save(tmp_path / "copy", tmp_path / "one.pt")
    assert equal(torch.load(tmp_path / "one.pt", weights_only=False)["model"], saved["model"])


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # said by the writer of torch 2.6
@every_store
@pytest.mark.parametrize("options", [{}, {"single_file_per_rank": False}], ids=["one-file", "file-per-item"])
def test_we_open_what_torch_wrote(place: Place, tmp_path: Path, options: dict) -> None:
    """An uploaded checkpoint of FileSystemWriter is loaded equal, whatever its layout."""
    saved, uri = {**training_state(1), "odd": odd_tensors(), "large": torch.randn(3_000_000)}, place()
    dcp.save(saved, storage_writer=FileSystemWriter(tmp_path / "theirs", **options))
    upload(tmp_path / "theirs", uri)
    loaded = {**training_state(2), "odd": zeros_like(odd_tensors()), "large": torch.zeros(3_000_000)}
    load(loaded, uri)
    assert equal(saved, loaded)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_our_items_are_torchs_byte_for_byte(place: Place, tmp_path: Path) -> None:
    """Every tensor item in a data object is the very bytes that torch.save makes of the tensor."""
    import io

    from dcp_cloud import CloudStorageReader

    saved, uri = {"a": torch.randn(17, 9), "b": torch.randn(2_000_001), "t": torch.randn(9, 17).t()}, place()
    save(saved, uri)
    metadata = CloudStorageReader(uri).read_metadata()
    store = open_store(uri)
    for index, info in metadata.storage_data.items():
        stream = io.BytesIO()
        torch.save(saved[index.fqn], stream)
        data = bytearray(info.length)
        store.get_range(info.relative_path, info.offset, [memoryview(data)])
        assert bytes(data) == stream.getvalue()


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize("writer", ["ours", "torch"])
def test_compressed_items_are_written_and_read(place: Place, tmp_path: Path, writer: str) -> None:
    """Stream transforms (zstd) of either writer are undone by either reader."""
    extension = pytest.importorskip("torch.distributed.checkpoint._extension", reason="torch 2.6 has no transforms")

    saved, uri = {"w": torch.zeros(500_000), "name": "run", "v": torch.randn(1000)}, place()
    if writer == "ours":
        done = save(saved, uri, extensions=[extension.ZStandard()])
        assert done.last_save is not None
        assert done.last_save.size_bytes < 100_000
        download(uri, tmp_path / "copy")
    else:
        dcp.save(saved, storage_writer=FileSystemWriter(tmp_path / "copy", _extensions=[extension.ZStandard()]))
        upload(tmp_path / "copy", uri)
    loaded = {"w": torch.ones(500_000), "name": "", "v": torch.zeros(1000)}
    load(loaded, uri)
    assert equal(saved, loaded)
    loaded = {"w": torch.ones(500_000), "name": "", "v": torch.zeros(1000)}
    dcp.load(loaded, storage_reader=FileSystemReader(tmp_path / "copy"))
    assert equal(saved, loaded)
