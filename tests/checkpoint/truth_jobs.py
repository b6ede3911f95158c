"""Saves that are disturbed, by this package and by torch's own writers; module-level, since some run in a process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dcp_cloud import CloudStorageReader, CloudStorageWriter, TransferConfig, open_store
from dcp_cloud.testing import Fault, FaultyStore
from dcp_cloud.testing.wrappers import Request, StoreWrapper

ITEMS = 16
NUMEL = 330_000
TRANSFER = TransferConfig(part_size_bytes=5 * 2**20, max_concurrency=4)


def state(value: float) -> dict[str, torch.Tensor]:
    """Make sixteen tensors that together take several parts."""
    return {f"w{n:02d}": torch.full((NUMEL,), value + n) for n in range(ITEMS)}


def make_writer(kind: str, where: str, **options: Any) -> Any:
    """Make a writer: ``ours``, or torch's for a directory or for any file system."""
    if kind == "ours":
        return CloudStorageWriter(where, transfer=TRANSFER, **options)
    if kind == "torch":
        return FileSystemWriter(where, single_file_per_rank=False, thread_count=4, **options)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    return FsspecWriter(f"file://{where}", single_file_per_rank=False, thread_count=4, **options)


def make_reader(kind: str, where: str) -> Any:
    return CloudStorageReader(where) if kind == "ours" else FileSystemReader(where)


def loaded(kind: str, where: str) -> dict[str, float]:
    """Load a checkpoint; give the value of each tensor, NaN where a tensor is not of one value."""
    target = state(-1.0)
    dcp.load(target, storage_reader=make_reader(kind, where))
    return {name: float(tensor[0]) if tensor.eq(tensor[0]).all() else float("nan") for name, tensor in target.items()}


def expected(value: float) -> dict[str, float]:
    return {name: float(tensor[0]) for name, tensor in state(value).items()}


def save(kind: str, where: str, value: float, planner: dcp.SavePlanner | None = None, **options: Any) -> list[str]:
    """Save; give the types of the errors that were raised, none for a success."""
    writer = make_writer(kind, where, **options)
    if kind != "ours":
        writer.fs = FailingInHelpers(writer.fs) if isinstance(planner, FailInHelpers) else writer.fs
    try:
        dcp.save(state(value), storage_writer=writer, planner=planner)
    except CheckpointException as error:
        return [type(cause).__name__ for cause, _ in error.failures.values()]
    return []


class FailInHelpers(dcp.DefaultSavePlanner):
    """Tells ``save`` that whatever is sent by another thread than the main one fails."""


class RefusesHelpers(StoreWrapper):
    """A store whose second upload fails, as always on a thread of its own."""

    def __init__(self, store: Any) -> None:
        super().__init__(FaultyStore(store, [Fault("refuse", verb="put*", nth=2)]))
        self.threads: set[str] = set()

    def around(self, request: Request, run: Callable[[], Any]) -> Any:
        if request.verb.startswith("put"):
            self.threads.add(threading.current_thread().name)
        return run()


class FailingInHelpers:
    """A file system of torch's that fails in helper threads; the main thread waits until one of them has."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self._failed = threading.Event()

    def create_stream(self, path: Any, mode: str) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self._failed.set()
            raise OSError("the network is gone")
        if mode == "wb" and str(path).endswith(".distcp"):
            self._failed.wait(10)
        return self._fs.create_stream(path, mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)


class RaiseAfter(dcp.DefaultSavePlanner):
    """Gives half of the items and then raises."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._given = 0

    def resolve_data(self, write_item: Any) -> Any:
        with self._lock:
            self._given += 1
            if self._given > ITEMS // 2:
                raise RuntimeError("the accelerator fell off the bus")
        return super().resolve_data(write_item)


class KillAfter(RaiseAfter):
    """Gives half of the items and then kills the process."""

    def resolve_data(self, write_item: Any) -> Any:
        try:
            return super().resolve_data(write_item)
        except RuntimeError:
            os.kill(os.getpid(), signal.SIGKILL)
            raise


def save_and_be_killed(kind: str, where: str, value: float, moment: str) -> None:
    """Die by SIGKILL: in the middle of the data, with the commit request, or right after it took effect."""
    if moment == "data":
        save(kind, where, value, KillAfter())
    elif kind == "ours":
        verb, _, when = moment.partition(" ")
        assert when in ("before", "after")
        key = "*.distcp" if verb != "commit" else ".metadata"
        fault = Fault("kill", verb="put" if verb == "commit" else verb, key=key, when=when)  # type: ignore[arg-type]
        save(kind, where, value, store=FaultyStore(open_store(where), [fault]))
    else:
        FileSystemWriter.finish = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        save(kind, where, value)


class Interrupting(StoreWrapper):
    """Sends Ctrl-C to this process with the nth request of a verb, from whatever thread makes it."""

    def __init__(self, store: Any, verb: str, nth: int) -> None:
        super().__init__(store)
        self._verb = verb
        self._left = nth
        self._lock = threading.Lock()

    def around(self, request: Request, run: Callable[[], Any]) -> Any:
        if request.verb == self._verb and request.key.endswith(".distcp"):
            with self._lock:
                self._left -= 1
                is_now = self._left == 0
            if is_now:
                os.kill(os.getpid(), signal.SIGINT)
        return run()


def save_and_be_interrupted(where: str, value: float, verb: str, nth: int) -> list[str]:
    """Press Ctrl-C in the middle of a save; give what was raised and the threads that were left."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raised = save("ours", where, value, store=Interrupting(open_store(where), verb, nth))
    return raised + [thread.name for thread in threading.enumerate() if thread.name.startswith("dcp_cloud")]


class _GivesDTensors(dcp.DefaultSavePlanner):
    """Resolves to the whole DTensor where torch's own planner gives the local part."""

    def resolve_data(self, write_item: Any) -> Any:
        return self.state_dict.get(write_item.index.fqn, super().resolve_data(write_item))


def save_dtensors(where: str) -> None:
    """Save the rows of each rank with a planner that gives DTensors, some of which have to be gathered first."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(1_200_000.0).view(1200, 1000)
    sharded = {
        "rows": distribute_tensor(whole, mesh, [Shard(0)]),
        "columns": DTensor.from_local(
            whole.chunk(dist.get_world_size(), 1)[dist.get_rank()],
            mesh,
            [Shard(1)],
            shape=(1200, 1000),
            stride=(1000, 1),
        ),
    }
    dcp.save(sharded, storage_writer=CloudStorageWriter(where, transfer=TRANSFER), planner=_GivesDTensors())


def save_alone(where: str) -> tuple[list[str], float]:
    """Save without a process group, at the same time as every other rank and to the same place."""
    value = 100.0 * (1 + dist.get_rank())
    dist.barrier()
    try:
        dcp.save(state(value), storage_writer=CloudStorageWriter(where, transfer=TRANSFER), no_dist=True)
    except CheckpointException as error:
        return [type(cause).__name__ for cause, _ in error.failures.values()], value
    return [], value
