"""What processes of their own do in ``test_processes``."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch
import torch.distributed.checkpoint as dcp
from torch.utils.data import DataLoader, Dataset

from dcp_cloud import CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.stores.base import ObjectStore
from tests.support.resources import open_files

_NUMEL = 3_000_000


def run(environment: Mapping[str, str], log: str, function: Callable[..., object], *args: object) -> None:
    """Be a job of one process, without a process group; what it has to say goes to a file."""
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    warnings.simplefilter("ignore")
    faulthandler.enable()  # writes the stacks of all threads when the test ends a job that hangs
    left = function(*args)
    if left:
        raise AssertionError(f"left behind: {left}")


def save_until_told(uri: str) -> None:
    """Save, as a job that wants to clean up when its scheduler ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dcp.save({"w": torch.ones(_NUMEL)}, storage_writer=CloudStorageWriter(uri))


def use_after_fork(uri: str) -> dict[str, int]:
    """Save and load in parent and child at once, with a writer, a reader and a store that were used before the fork."""
    root, _, query = uri.partition("?")
    writer, reader, store = CloudStorageWriter(uri), CloudStorageReader(uri), open_store(uri)
    _round_trip(writer, reader, 1.0)
    store.head(".metadata")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            writer.reset(f"{root}-child?{query}")
            reader.reset(f"{root}-child?{query}")
            _round_trip(writer, reader, 2.0)
            assert store.head(".metadata").size_bytes > 0
            for each in (writer, reader, store):
                each.close()
            code = 0
        finally:
            os._exit(code)
    _round_trip(writer, reader, 3.0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    _round_trip(writer, reader, 4.0)
    for each in (writer, reader, store):
        each.close()
    return _left()


def load_data(uri: str, method: str) -> dict[str, int]:
    """Read ranges of objects in a data loader's workers, with a store that was used before they were started."""
    store = open_store(uri)
    store.put("data", [memoryview(bytes(range(64)))])
    store.head("data")
    loader: DataLoader[Any] = DataLoader(
        Ranges(store), batch_size=4, num_workers=2 if method == "fork" else 1, multiprocessing_context=method
    )
    read = torch.cat(list(loader)).flatten()
    assert read.tolist() == list(range(64))
    assert store.head("data").size_bytes == 64
    store.close()
    return _left()


class Ranges(Dataset[torch.Tensor]):
    """Four bytes each of an object."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        room = bytearray(4)
        self._store.get_range("data", index * 4, [memoryview(room)])
        return torch.frombuffer(room, dtype=torch.uint8)


def save_in_a_process(uri: str) -> dict[str, int]:
    """Save in torch's checkpoint process, and load the result here."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    reader = CloudStorageReader(uri)
    future = dcp.async_save(
        {"w": torch.full((_NUMEL,), 5.0)},
        storage_writer=CloudStorageWriter(uri),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    )
    future.result()
    state = {"w": torch.zeros(_NUMEL)}
    dcp.load(state, storage_reader=reader)
    reader.close()
    assert bool(state["w"].eq(5.0).all())
    return _left()


def _round_trip(writer: CloudStorageWriter, reader: CloudStorageReader, value: float) -> None:
    dcp.save({"w": torch.full((_NUMEL,), value)}, storage_writer=writer)
    state = {"w": torch.zeros(_NUMEL)}
    dcp.load(state, storage_reader=reader)
    assert bool(state["w"].eq(value).all())


def _left() -> dict[str, int]:
    """Tell what of this package's is still there: threads, and connections to anything but the other ranks."""
    threads = [thread.name for thread in threading.enumerate() if "dcp_cloud" in thread.name]
    port = urlsplit(os.environ["TEST_ENDPOINT"]).port
    sockets = [link for link in psutil.Process().net_connections("tcp") if link.raddr and link.raddr.port == port]
    files = [name for name in open_files() if name.startswith(os.environ.get("TMPDIR", "/nowhere"))]
    return {**dict.fromkeys(threads, 1), **({"sockets": len(sockets)} if sockets else {}), **dict.fromkeys(files, 1)}
