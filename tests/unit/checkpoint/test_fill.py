"""Filling a load plan: how many requests, what memory, what is refused, and what planners may do."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem
from typing_extensions import Self

from dcp_cloud import errors
from dcp_cloud.checkpoint import fill
from dcp_cloud.config import MIB
from dcp_cloud.format.layout import PAGE_BYTES
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing import RecordingStore
from tests.unit.checkpoint.place import failure, load, new_store, reader, reads, rewrite_metadata, save
from tests.unit.format.strategies import storage_alignment


def box(fqn: str, storage: tuple[int, ...], dest: tuple[int, ...], lengths: tuple[int, ...]) -> ReadItem:
    """Plan the reading of part of a tensor that was saved as one chunk."""
    index = MetadataIndex(fqn, torch.Size([0] * len(storage)))
    return ReadItem(
        LoadItemType.TENSOR, index, torch.Size(dest), index, torch.Size(storage), torch.Size(lengths)
    )  # fmt: skip


def fill_plan(store: ObjectStore, state: dict[str, Any], items: list[ReadItem]) -> None:
    """Run a hand-made plan."""
    source, planner = reader(store), dcp.DefaultLoadPlanner()
    metadata = source.read_metadata()
    planner.set_up_planner(state, metadata, True)
    source.set_up_storage_reader(metadata, True)
    source.read_data(LoadPlan(items), planner).wait()


def torch_wrote(state: dict[str, Any], directory: Path, store: ObjectStore) -> None:
    """Save with torch's own writer and put the files into a store."""
    dcp.save(state, storage_writer=FileSystemWriter(directory))
    for path in directory.iterdir():
        store.put(path.name, [memoryview(path.read_bytes())])


def test_ten_thousand_small_tensors_are_a_handful_of_requests() -> None:
    """The number of requests follows from the bytes, not from the number of tensors."""
    store = RecordingStore(new_store())
    state = {f"layer.{n}": torch.full((1024,), float(n)) for n in range(10_000)}
    save(state, store)
    store.clear()
    loaded = {name: torch.zeros(1024) for name in state}
    load(loaded, store)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert len(reads(store)) <= 32


def test_a_slice_of_rows_fetches_no_more_than_it_needs() -> None:
    """Reading a tenth of a tensor's rows fetches their bytes and the rest of two pages, ours and torch's alike."""
    store = RecordingStore(new_store())
    tensor = torch.randn(4000, 500)
    save({"w": tensor}, store)
    store.clear()
    loaded = {"w": torch.zeros(400, 500)}
    fill_plan(store, loaded, [box("w", (1111, 0), (0, 0), (400, 500))])
    assert torch.equal(loaded["w"], tensor[1111:1511])
    assert sum(reads(store)) <= loaded["w"].nbytes + 2 * PAGE_BYTES


def test_overlapping_boxes_of_one_chunk_are_all_filled() -> None:
    """Several read items on one stored chunk, overlapping and equal ones too, each get their elements."""
    store = RecordingStore(new_store())
    tensor = torch.randn(300, 200)
    save({"w": tensor}, store)
    store.clear()
    whole = torch.zeros(700, 200)
    rows = [(0, 0, 150), (100, 150, 200), (100, 350, 200), (299, 550, 1)]
    fill_plan(store, {"w": whole}, [box("w", (source, 0), (to, 0), (n, 200)) for source, to, n in rows])
    for source, to, n in rows:
        assert torch.equal(whole[to : to + n], tensor[source : source + n])
    assert sum(reads(store)) <= tensor.nbytes


def test_torchs_small_and_long_items_are_sliced_alike(tmp_path: Path) -> None:
    """Of torch's long items a slice costs a look at the header and the slice; short ones are taken whole."""
    plain = new_store()
    state = {"long": torch.randn(3000, 100), "short": torch.randn(30, 10)}
    torch_wrote(state, tmp_path, plain)
    store = RecordingStore(plain)
    loaded = {"long": torch.zeros(5, 100), "short": torch.zeros(5, 10)}
    fill_plan(
        store,
        loaded,
        [box("long", (1000, 0), (0, 0), (5, 100)), box("short", (9, 0), (0, 0), (5, 10))],
    )
    assert torch.equal(loaded["long"], state["long"][1000:1005])
    assert torch.equal(loaded["short"], state["short"][9:14])
    assert sum(reads(store)) < 10_000


def test_headers_of_any_alignment_are_parsed(tmp_path: Path) -> None:
    """A long header, of a user's own storage_alignment, is read by a second look instead of the whole item."""
    plain = new_store()
    state = {"w": torch.randn(4000, 100)}
    with storage_alignment(4096):
        torch_wrote(state, tmp_path, plain)
    store = RecordingStore(plain)
    loaded = {"w": torch.zeros(4, 100)}
    fill_plan(store, loaded, [box("w", (2000, 0), (0, 0), (4, 100))])
    assert torch.equal(loaded["w"], state["w"][2000:2004])
    assert sum(reads(store)) < 200_000


class _Halves(torch.Tensor):
    """A tensor that torch sees as two chunks of a larger one (torch's protocol for tensor subclasses)."""

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(cls, data.size())  # type: ignore[attr-defined]
        return made

    def __init__(self, data: torch.Tensor) -> None:
        self.data_ = data

    def _bounds(self) -> list[tuple[int, int]]:
        middle = self.size(0) // 3
        return [(0, middle), (middle, self.size(0) - middle)]

    def __create_write_items__(self, fqn: str, value: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        return [
            WriteItem(
                MetadataIndex(fqn, torch.Size([start, 0])),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    ChunkStorageMetadata(torch.Size([start, 0]), torch.Size([length, self.size(1)])),
                    TensorProperties(),
                    self.size(),
                ),
            )
            for start, length in self._bounds()
        ]

    def __create_chunk_list__(self) -> list[Any]:
        return [item.tensor_data.chunk for item in self.__create_write_items__("", None)]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None
        start, length = next(bounds for bounds in self._bounds() if bounds[0] == index.offset[0])
        return self.data_[start : start + length]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


def test_several_chunks_of_one_name_on_one_rank() -> None:
    """A value that is saved as several chunks is loaded as several others, or as one plain tensor."""
    store, tensor = new_store(), torch.randn(700, 90)
    save({"w": _Halves(tensor)}, store)
    plain, again = torch.zeros(700, 90), _Halves(torch.zeros(700, 90))
    load({"w": plain}, store)
    load({"w": again}, store)
    assert torch.equal(plain, tensor)
    assert torch.equal(again.data_, tensor)


class _Bytes(dcp.DefaultSavePlanner):
    """Stores byte items as they are, empty ones too."""

    def resolve_data(self, write_item: Any) -> Any:
        return io.BytesIO(self.state_dict[write_item.index.fqn])


class _LoadBytes(dcp.DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, tuple[bytes, str]] = {}

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.loaded[read_item.dest_index.fqn] = (value.read(), threading.current_thread().name)


def test_byte_items_of_any_length_come_back_on_the_callers_thread() -> None:
    """A planner may store no bytes at all for an item; what it stored is handed back, on one thread."""
    store, planner = new_store(), _LoadBytes()
    state = {"none": b"", "some": b"some", "many": bytes(300_000)}
    save(state, store, _Bytes())
    load({"none": 0, "some": 0, "many": 0}, store, planner)
    assert planner.loaded == {name: (value, threading.current_thread().name) for name, value in state.items()}


class _Otherwise(dcp.DefaultSavePlanner):
    """Gives tensors of another dtype than its plan announces."""

    def resolve_data(self, write_item: Any) -> Any:
        return super().resolve_data(write_item).to(torch.bfloat16)


@pytest.mark.parametrize("numel", [100, 100_000])
def test_a_planner_may_store_another_dtype_than_planned(numel: int) -> None:
    """What the item itself says counts where the planner gave another dtype than it announced, as for torch."""
    store, tensor = new_store(), torch.arange(float(numel))
    save({"w": tensor}, store, _Otherwise())
    loaded = {"w": torch.zeros(numel)}
    load(loaded, store)
    assert torch.equal(loaded["w"], tensor.bfloat16().float())


class _Reshaping(dcp.DefaultLoadPlanner):
    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return super().resolve_tensor(read_item).reshape(-1)


def test_a_target_of_another_shape_than_planned_is_refused() -> None:
    """A planner that resolves to another shape is told; nothing is broadcast."""
    store = new_store()
    save({"w": torch.ones(4, 4)}, store)
    error = failure(load, {"w": torch.zeros(4, 4)}, store, _Reshaping())
    assert isinstance(error, errors.StateDictMismatchError)
    assert "[16]" in str(error)


@pytest.mark.parametrize("extension", ["plain", "zstd"])
def test_inference_tensors_are_filled_in_every_way(extension: str, tmp_path: Path) -> None:
    """Tensors made in inference mode are filled whether they are converted or unpacked."""
    from torch.distributed.checkpoint._extension import ZStandard

    store, tensor = new_store(), torch.randn(100, 100)
    save({"w": tensor, "b": torch.ones(3)}, store, extensions=[ZStandard()] if extension == "zstd" else [])
    with torch.inference_mode():
        loaded = {"w": torch.zeros(100, 100, dtype=torch.float64), "b": torch.zeros(3)}
        load(loaded, store)
    assert torch.equal(loaded["w"], tensor.double())
    assert loaded["b"].all()


def test_long_items_are_unpacked_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking needs several times an item's length, so only one long item is unpacked at any time."""
    from torch.distributed.checkpoint._extension import ZStandard

    threads: dict[str, set[str]] = {"long": set(), "short": set()}
    plain_load = fill.load_item

    def watched(data: bytes, *, key: str) -> torch.Tensor:
        threads["long" if len(data) > MIB else "short"].add(threading.current_thread().name)
        return plain_load(data, key=key)

    monkeypatch.setattr(fill, "load_item", watched)
    store = new_store()
    state = {f"long{n}": torch.full((500_000,), float(n)) for n in range(4)} | {"short": torch.ones(10)}
    save(state, store, extensions=[ZStandard()])
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    load(loaded, store)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert threads["long"] == {threading.current_thread().name}
    assert threads["short"].isdisjoint(threads["long"])


def _sizes(*sizes: int) -> Any:
    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"].chunks[0].sizes = torch.Size(sizes)  # type: ignore[union-attr]

    return change


def _attribute(place: int, value: Any) -> Any:
    def change(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            if index.fqn == "w":
                version, crc, raw = info.dcp_cloud
                info.dcp_cloud = (version, crc, (*raw[:place], value, *raw[place + 1 :]))

    return change


def _info(**fields: Any) -> Any:
    def change(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            if index.fqn == "w":
                vars(info).update(fields)

    return change


def _no_record(metadata: Metadata) -> None:
    metadata.storage_data = {index: info for index, info in metadata.storage_data.items() if index.fqn != "w"}


def _other_dtype(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].properties.dtype = torch.float64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        _sizes(499, 200),
        _sizes(500, 400),
        _sizes(1000, 10),
        _other_dtype,
        _no_record,
        _info(length=0),
        _info(length=-1),
        _info(length=2**70),
        _info(length="long"),
        _info(offset=2**62),
        _info(offset=None),
        _info(relative_path="../w"),
        _info(relative_path=None),
        _info(transform_descriptors=7),
        _attribute(0, 0),
        _attribute(0, 2**62),
        _attribute(1, 400_001),
        _attribute(1, 2**62),
        _attribute(2, (2**40, 2**40)),
        _attribute(2, (-1, 1)),
        _attribute(2, (200,)),
        _attribute(3, 2**40),
        _attribute(4, b"123"),
    ],
)
def test_a_metadata_that_lies_is_corrupt(change: Any) -> None:
    """Sizes, strides, offsets and lengths that contradict one another or the objects: a typed error, no numbers."""
    store = new_store()
    save({"w": torch.randn(500, 200), "b": torch.ones(3)}, store)
    rewrite_metadata(store, change)
    loaded = {"w": torch.zeros(500, 200), "b": torch.zeros(3)}
    error = failure(load, loaded, store)
    assert isinstance(error, errors.CorruptCheckpointError), repr(error)
    assert error.hint


@pytest.mark.parametrize(
    "fields", [{"length": 70_000}, {"length": 10_000}, {"offset": 100}, {"offset": 10**6}], ids=str
)
def test_a_lie_about_torchs_items_is_corrupt(tmp_path: Path, fields: dict[str, int]) -> None:
    """An item whose place is forged is refused also where torch's own record is all there is."""
    store = new_store()
    torch_wrote({"w": torch.randn(500, 200)}, tmp_path, store)
    rewrite_metadata(store, _info(**fields))
    error = failure(load, {"w": torch.zeros(500, 200)}, store)
    assert isinstance(error, errors.CorruptCheckpointError), repr(error)


@pytest.mark.parametrize("numel", [400, 40_000])
def test_an_item_of_another_shape_than_listed_is_corrupt(tmp_path: Path, numel: int) -> None:
    """Two stored tensors that were exchanged in .metadata are noticed, not broadcast or cut."""
    store = new_store()
    torch_wrote({"a": torch.randn(numel, 1), "b": torch.randn(numel, 2)}, tmp_path, store)

    def exchange(metadata: Metadata) -> None:
        a, b = (next(index for index in metadata.storage_data if index.fqn == name) for name in "ab")
        metadata.storage_data[a], metadata.storage_data[b] = metadata.storage_data[b], metadata.storage_data[a]

    rewrite_metadata(store, exchange)
    error = failure(load, {"a": torch.zeros(numel, 1)}, store)
    assert isinstance(error, errors.CorruptCheckpointError), repr(error)
    error = failure(load, {"b": torch.zeros(numel, 2)}, store)
    assert isinstance(error, errors.CorruptCheckpointError), repr(error)


def test_empty_tensors_ask_for_nothing() -> None:
    """A tensor without elements is filled without a request, its planner's commit included."""
    committed: list[str] = []

    class Planner(dcp.DefaultLoadPlanner):
        def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
            committed.append(read_item.dest_index.fqn)

    store = RecordingStore(new_store())
    save({"e": torch.empty(0, 3)}, store)
    store.clear()
    load({"e": torch.empty(0, 3)}, store, Planner())
    assert not reads(store)
    assert committed in ([], ["e"])  # torch plans no read for some empty tensors


def test_the_callers_default_device_does_not_matter() -> None:
    """Trainers set a default device; what is staged, converted and unpacked stays in host memory all the same."""
    big = torch.randn(3000, 2000)
    state = {"scattered": big[:, 5:1500], "turned": torch.randn(4, 6).t(), "plain": torch.randn(5), "n": 3}
    loaded = {name: torch.zeros(v.shape, dtype=torch.float64) for name, v in state.items() if name != "n"} | {"n": 0}
    store = new_store()
    with torch.device("meta"):
        save(state, store)
        load(loaded, store)
    assert loaded.pop("n") == 3
    assert all(torch.equal(value, state[name].double()) for name, value in loaded.items())
