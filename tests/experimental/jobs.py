"""What ranks do in the tests of torch's experimental checkpointers; module-level functions, since ranks are spawned."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._experimental import (
    BarrierConfig,
    CheckpointerConfig,
    CheckpointWriterConfig,
    RankInfo,
    WriterHook,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from dcp_cloud import (
    CloudCheckpointWriter,
    TransferConfig,
    make_cloud_async_checkpointer,
    make_cloud_sync_checkpointer,
    open_store,
)
from dcp_cloud.testing import Fault, FaultyStore
from tests.checkpoint.states import equal

PARTS = TransferConfig(part_size_bytes=5 * 2**20)


def state(rank: int, seed: int = 0) -> dict[str, Any]:
    """Make a rank's state dict, with every layout that a reader can get wrong."""
    generator = torch.Generator().manual_seed(100 * seed + rank)
    base = torch.randn(24, 1000, generator=generator)
    return {
        "model": {"weight": torch.randn(1700, 1000, generator=generator), "bias": torch.arange(7) + rank},
        "base": base,
        "view": base[4:8],
        "columns": base[:, 2:5],
        "transposed": base.t(),
        "half": torch.randn(33, generator=generator).bfloat16(),
        "empty": torch.empty(0, 4),
        "pair": (torch.full((3,), float(rank)), seed),
        "list": [torch.zeros(2), {"deep": torch.full((2,), seed)}],
        "parameter": torch.nn.Parameter(torch.randn(5, generator=generator)),
        "step": seed,
        "name": f"rank {rank}",
    }


def wanted() -> dict[str, Any]:
    """Make a state dict that asks for a part of it."""
    return {
        "model": {"bias": torch.zeros(7, dtype=torch.int64), "gone": None},
        "transposed": torch.zeros(1000, 24),
        "view": None,
        "columns": torch.zeros(3, 24).t(),
        "pair": None,
        "parameter": torch.nn.Parameter(torch.zeros(5)),
        "missing": torch.zeros(1),
        "step": -1,
    }


def save_and_load(uri: str, seed: int) -> list[str]:
    """Save on this rank with DTensors, load whole and in part, return what differs."""
    rank = dist.get_rank()
    checkpointer = make_cloud_sync_checkpointer(transfer=PARTS)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = distribute_tensor(torch.arange(40.0).reshape(10, 4) + seed, mesh, [Shard(0)])
    saved = state(rank, seed)
    checkpointer.save(uri, {**saved, "sharded": sharded})
    loaded = checkpointer.load(uri)
    part = {**wanted(), "sharded": distribute_tensor(torch.zeros(10, 4), mesh, [Shard(0)])}
    found = checkpointer.load(uri, part)
    made = checkpointer.load(uri, {"sharded": None})["sharded"]
    checkpointer.close()
    differing = [name for name in saved if not equal(loaded[name], saved[name])]
    differing += [
        f"part {name}" for name in ("transposed", "view", "columns", "pair", "step") if not same(found, saved, name)
    ]
    for name, tensor in (("loaded", loaded["sharded"]), ("part", found["sharded"]), ("made", made)):
        assert isinstance(tensor, DTensor)
        if not equal(tensor.to_local(), sharded.to_local()):
            differing.append(f"{name} sharded")
    return differing


def load_into_other_layouts(uri: str) -> list[str]:
    """Save a DTensor, load it into others whose shards on this rank have the same size; return what each gave."""
    mesh = init_device_mesh("cpu", (1,))

    def part(placement: Any, shape: tuple[int, int]) -> DTensor:
        local = torch.zeros(4, 8)
        return DTensor.from_local(
            local, mesh, [placement], run_check=False, shape=torch.Size(shape), stride=(shape[1], 1)
        )

    checkpointer = make_cloud_sync_checkpointer()
    checkpointer.save(uri, {"w": part(Shard(0), (8, 8))})
    outcomes = []
    for placement, shape in ((Shard(0), (8, 8)), (Shard(1), (4, 16)), (Replicate(), (4, 8)), (Shard(0), (12, 8))):
        try:
            checkpointer.load(uri, {"w": part(placement, shape)})
            outcomes.append("ok")
        except Exception as error:
            outcomes.append(type(error).__name__)
    return outcomes


def same(found: dict[str, Any], saved: dict[str, Any], name: str) -> bool:
    """Compare one entry of two state dicts."""
    return equal(found[name], saved[name])


def load(uri: str) -> str:
    """Load, and report what this rank was told."""
    checkpointer = make_cloud_sync_checkpointer()
    try:
        found = checkpointer.load(uri)
    except Exception as error:
        return type(error).__name__
    return str(found["name"])


def save_with_fault(uri: str, failing_rank: int, fault: dict[str, Any]) -> str:
    """Save while the store of one rank fails; every rank reports what it was told."""
    store = open_store(uri)
    if dist.get_rank() == failing_rank:
        store = FaultyStore(store, faults=[Fault(**fault)])
    config = CheckpointerConfig(writer_config=CheckpointWriterConfig(write_barrier_timeout_secs=60))
    checkpointer = make_cloud_sync_checkpointer(config, store=store, transfer=PARTS)
    try:
        checkpointer.save(uri, state(dist.get_rank()))
    except Exception as error:
        return type(error).__name__
    return "ok"


class Order(WriterHook):
    """Notes what it is told, and what of the checkpoint is there when it is told.

    Args:
        uri: The checkpoint.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.seen: list[tuple[str, list[str], dict[str, Any]]] = []

    def pre_commit(self, path: str, **kwargs: Any) -> None:
        self._note("pre", kwargs)

    def post_commit(self, path: str, **kwargs: Any) -> None:
        self._note("post", kwargs)

    def _note(self, when: str, kwargs: dict[str, Any]) -> None:
        keys = sorted(meta.key for meta in open_store(self.uri).list() if not meta.key.startswith("marks/"))
        self.seen.append((when, keys, kwargs))


def save_with_hook(uri: str) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Save with torch's barrier and a hook; return what the hook saw."""
    hook = Order(uri)
    config = CheckpointerConfig(barrier_config=BarrierConfig(barrier_type="dist_barrier"))
    checkpointer = make_cloud_sync_checkpointer(config, commit_hook=hook)
    checkpointer.save(uri, state(dist.get_rank()), step=3)
    checkpointer.close()
    return hook.seen


class Picky(WriterHook):
    """Refuses what it is told to refuse."""

    def pre_commit(self, path: str, **kwargs: Any) -> None:
        if kwargs.get("refuse"):
            raise Refusal(3, "no")
        if kwargs.get("long"):
            raise ValueError("no" * 200_000)
        if kwargs.get("torch"):
            raise CheckpointException("no", {})

    def post_commit(self, path: str, **kwargs: Any) -> None:
        pass


class Refusal(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def background_saves(uris: list[str], missing: str) -> list[str]:
    """Save in the other process: well, to a bucket that is not there, refused by a hook, and well again."""
    rank = dist.get_rank()
    checkpointer = make_cloud_async_checkpointer(commit_hook=Picky(), transfer=PARTS)
    outcomes = []
    plan = [(uris[0], {}), (missing, {}), (uris[1], {"refuse": True}), (uris[2], {})]
    for number, (uri, options) in enumerate(plan):
        mutable = state(rank, number)
        staged, written = checkpointer.save(uri, mutable, **options)
        staged.result()
        mutable["base"].zero_()  # what was staged must not see this
        try:
            written.result()
            outcomes.append("ok")
        except Exception as error:
            outcomes.append(type(error).__name__)
    for number in (0, 3):
        loaded = checkpointer.load(uris[0] if number == 0 else uris[2])
        outcomes.append("equal" if equal(loaded, state(rank, number)) else "differs")
    checkpointer.close()
    return outcomes


class WritingLater:
    """A writer that answers with a future, which another thread completes; and that takes its time."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, path: str, state_dict: dict[str, Any], **kwargs: Any) -> Future[None]:
        future: Future[None] = Future()

        def complete() -> None:
            self.written.append(path)
            future.set_result(None)

        threading.Timer(0.2, complete).start()
        return future

    def close(self) -> None:
        pass


class FailingLater:
    """A writer as others may write them: it answers with a future that fails."""

    def write(self, path: str, state_dict: dict[str, Any], **kwargs: Any) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(OSError("the disk is full"))
        return future

    def close(self) -> None:
        pass


def make_failing_later(**_: Any) -> FailingLater:
    return FailingLater()


def writer(uri: str, rank: int = 0, world_size: int = 1, run_id: str = "run", **settings: Any) -> CloudCheckpointWriter:
    """Make a writer of one of several ranks that are only imagined."""
    config = CheckpointWriterConfig(write_barrier_timeout_secs=settings.pop("timeout_s", 0))
    info = RankInfo(global_rank=rank, global_world_size=world_size)
    return CloudCheckpointWriter(config, info, run_id=run_id, **settings)
