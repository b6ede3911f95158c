"""From a tensor's memory at save to a tensor's memory at load: what was not saved is never loaded.

A small checkpoint, every byte of it changed in turn; objects and items exchanged; bytes that changed at rest in the
parts that a slice reads. Stock torch reads what this package adds without noticing it.
"""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_cloud import CloudStorageReader, CloudStorageWriter, errors
from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.format.layout import PAGE_BYTES
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.transfer.events import ignore_event

URI = "memory://somewhere/run"
# Each byte takes a load or a verification: FLIP_STEP=1 changes them all, in about two minutes.
STEP = int(os.environ.get("FLIP_STEP", "23"))
TRANSFER = TransferConfig(retry=RetryConfig(max_attempts=1))


def state() -> dict[str, Any]:
    return {
        "w": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "t": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
        "z": torch.arange(4, dtype=torch.float32).to(torch.complex64).conj(),
        "step": 7,
        "text": "words",
    }


def blank() -> dict[str, Any]:
    return {
        name: torch.full_like(value, 9) if torch.is_tensor(value) else type(value)() for name, value in state().items()
    }


def saved(contents: dict[str, Any]) -> MemoryStore:
    store = MemoryStore(uuid.uuid4().hex)
    dcp.save(contents, storage_writer=CloudStorageWriter(URI, store=store))
    return store


def loaded(store: MemoryStore, into: dict[str, Any]) -> dict[str, Any]:
    """Load, with what torch wraps around an error taken off."""
    try:
        dcp.load(into, storage_reader=CloudStorageReader(URI, store=store, transfer=TRANSFER))
    except CheckpointException as error:
        raise error.failures[0][0] from error
    return into


def content(store: MemoryStore, key: str) -> bytes:
    return bytes(store.get(key, max_bytes=1 << 30).data)


def put(store: MemoryStore, key: str, data: bytes) -> None:
    store.put(key, [memoryview(data)])


def only_data_key(store: MemoryStore) -> str:
    (key,) = [meta.key for meta in store.list() if meta.key.endswith(".distcp")]
    return key


def is_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        for name, value in one.items()
    )


def flips(data: bytes, step: int = STEP) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data), step):
        yield at, data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def metadata_of(store: MemoryStore) -> Metadata:
    return CloudStorageReader(URI, store=store).read_metadata()


def test_every_changed_byte_of_the_commit_is_found() -> None:
    """Whatever byte of .metadata is changed, and wherever it is cut off, no load succeeds; verify names the commit."""
    store = saved(state())
    data = content(store, ".metadata")
    for at, changed in flips(data, step=1):
        put(store, ".metadata", changed)
        with pytest.raises(errors.CheckpointError):
            metadata_of(store)
        if at % 197 == 0:
            (problem,) = verify_checkpoint(store).problems
            assert problem.kind == "commit"
    seal_start = data.rindex(b"\n#")
    for stop in range(0, len(data), 7):
        if stop != seal_start:  # without the whole seal it is what an older writer would have written
            put(store, ".metadata", data[:stop])
            with pytest.raises(errors.CheckpointError):
                metadata_of(store)


def test_every_changed_byte_of_an_object_is_harmless_or_found() -> None:
    """Whatever byte of the data is changed, a load gives what was saved or an error with the object's name.

    What stands around a tensor's own bytes is not read by a load; that changes of it are found by verify is next.
    """
    store = saved(state())
    key = only_data_key(store)
    expected, found, unread = state(), 0, 0
    for at, changed in flips(content(store, key)):
        put(store, key, changed)
        try:
            assert is_equal(loaded(store, blank()), expected), at
            unread += 1
        except errors.CheckpointError as error:
            assert error.key == f"{URI}/{key}"  # noqa: PT017 - loading well is also allowed
            found += 1
    assert found > 0
    assert unread > 0


def test_verify_finds_every_changed_byte_of_an_object() -> None:
    """Headers, padding, tensors, values, trailers: no byte of an object changes without verify seeing it."""
    store = saved(state())
    key = only_data_key(store)
    data = content(store, key)
    missed = []
    for at, changed in flips(data):
        put(store, key, changed)
        if verify_checkpoint(store).ok:
            missed.append(at)
    assert missed == []


def test_exchanged_objects_are_found() -> None:
    """Two objects of equal length, each in the other's place: the load and verify name tensor and object."""
    stores = [saved({"w": torch.full((100,), value)}) for value in (1.0, 2.0)]
    keys = [only_data_key(store) for store in stores]
    put(stores[0], keys[0], content(stores[1], keys[1]))
    with pytest.raises(errors.CorruptCheckpointError, match="'w'") as caught:
        loaded(stores[0], {"w": torch.zeros(100)})
    assert caught.value.key == f"{URI}/{keys[0]}"
    (problem,) = verify_checkpoint(stores[0]).problems
    assert (problem.kind, problem.key, problem.tensors) == ("checksum", keys[0], ("w",))


def test_an_item_in_the_place_of_another_is_found() -> None:
    """The bytes of one tensor where another one of the same shape should be are not taken for it."""
    store = saved({"a": torch.full((50,), 1.0), "b": torch.full((50,), 2.0)})
    infos = {index.fqn: info for index, info in metadata_of(store).storage_data.items()}
    key = only_data_key(store)
    data = bytearray(content(store, key))
    a, b = infos["a"], infos["b"]
    data[a.offset : a.offset + a.length] = data[b.offset : b.offset + b.length]
    put(store, key, bytes(data))
    with pytest.raises(errors.CorruptCheckpointError, match="'a'") as caught:
        loaded(store, {"a": torch.zeros(50), "b": torch.zeros(50)})
    assert caught.value.key == f"{URI}/{key}"
    assert [problem.tensors for problem in verify_checkpoint(store).problems] == [("a",)]


class _Slice(LoadPlanner):
    """Wants rows of one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def set_up_planner(self, *_: Any, **__: Any) -> None: ...

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, *_: Any) -> None: ...

    def resolve_tensor(self, *_: Any) -> torch.Tensor:
        return self.target

    def commit_tensor(self, *_: Any) -> None: ...


def read_box(store: MemoryStore, offsets: tuple[int, int], target: torch.Tensor) -> None:
    reader = CloudStorageReader(URI, store=store, transfer=TRANSFER)
    metadata = reader.read_metadata()
    (index,) = metadata.storage_data
    item = ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=torch.Size((0, 0)),
        storage_index=index,
        storage_offsets=torch.Size(offsets),
        lengths=target.shape,
    )
    reader.fill(metadata, LoadPlan([item]), _Slice(target), hook=ignore_event)


@pytest.mark.parametrize(
    ("offsets", "shape", "dtype"),
    [
        ((301, 0), (600, 1000), torch.float32),
        ((301, 0), (3, 1000), torch.float32),
        ((301, 0), (600, 1000), torch.float64),
        ((301, 500), (200, 300), torch.float32),
        ((0, 999), (1000, 1), torch.float32),
    ],
    ids=["rows", "few rows", "converted", "box", "column"],
)
def test_a_slice_is_verified_to_its_last_byte(
    offsets: tuple[int, int], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """One changed bit in the first, a middle or the last element of any slice is found."""
    whole = torch.arange(1_000_000, dtype=torch.float32).reshape(1000, 1000)
    assert whole.nbytes > 4 * PAGE_BYTES
    store = saved({"w": whole})
    key = only_data_key(store)
    data = content(store, key)
    (info,) = metadata_of(store).storage_data.values()
    start = info.dcp_cloud[2][0]
    target = torch.zeros(shape, dtype=dtype)
    read_box(store, offsets, target)
    rows, columns = (slice(low, low + length) for low, length in zip(offsets, shape, strict=True))
    assert torch.equal(target, whole[rows, columns].to(dtype))
    for row, column in ((0, 0), (shape[0] // 2, shape[1] // 2), (shape[0] - 1, shape[1] - 1)):
        at = start + 4 * ((offsets[0] + row) * 1000 + offsets[1] + column)
        put(store, key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(errors.CorruptCheckpointError, match="'w'"):
            read_box(store, offsets, torch.zeros(shape, dtype=dtype))


def test_stock_torch_reads_a_sealed_commit(tmp_path: Any) -> None:
    """Unpicklers end at the last instruction: torch's own reader does not see the checksum behind it."""
    dcp.save(state(), storage_writer=CloudStorageWriter(f"file://{tmp_path}/run"))
    data = (tmp_path / "run" / ".metadata").read_bytes()
    assert b"# dcp_cloud crc32 " in data[-40:]
    assert isinstance(pickle.loads(data), Metadata)
    into = blank()
    dcp.load(into, storage_reader=FileSystemReader(tmp_path / "run"))
    assert is_equal(into, state())


def test_a_commit_without_a_seal_is_read() -> None:
    """What torch's writer makes, and what this package made before there were seals, is loaded as it was."""
    store = saved(state())
    data = content(store, ".metadata")
    put(store, ".metadata", data[: data.rindex(b"\n#")])
    assert is_equal(loaded(store, blank()), state())
