from __future__ import annotations

import gc
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from dcp_cloud.errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFormatError
from dcp_cloud.format.layout import RawData, StoredItem, from_storage_info, to_storage_info
from dcp_cloud.format.metadata import dump_metadata, load_metadata
from tests.unit.format.samples import KEY, Call, load, sample

# Said by torch 2.6 of its own writer.
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


def test_a_round_trip_gives_equal_metadata() -> None:
    """What is dumped is loaded, with the real classes and our extra attributes."""
    metadata = sample({"w": ("model", 0, "w")})
    raw = RawData(offset=714, size_bytes=12, strides=(1, 2), crc32=7)
    metadata.storage_data[MetadataIndex("raw")] = to_storage_info(
        StoredItem(key="a/b", offset=10, size_bytes=2000, raw=raw)
    )
    loaded = load(dump_metadata(metadata))
    assert loaded == metadata
    assert type(loaded) is Metadata
    assert {type(info) for info in loaded.storage_data.values()} == {_StorageInfo}
    assert {type(index) for index in loaded.storage_data} == {MetadataIndex}
    assert [type(entry) for entry in loaded.state_dict_metadata.values()] == [
        TensorStorageMetadata,
        BytesStorageMetadata,
    ]
    assert from_storage_info(loaded.storage_data[MetadataIndex("raw")]).raw == raw
    assert pickle.loads(pickle.dumps(loaded)) == metadata


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol(protocol: int) -> None:
    """Other Pythons pickle with other protocols; all binary ones are read."""
    assert load(pickle.dumps(sample(), protocol=protocol)) == sample()


def test_memoryviews_are_read() -> None:
    """The bytes may come as a view of a download buffer."""
    assert load_metadata(memoryview(dump_metadata(sample())), key=KEY) == sample()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    """Dumping and loading, failing too, restore the state of the garbage collector."""
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load(dump_metadata(sample()))
        assert gc.isenabled() == enabled
        with pytest.raises(CorruptCheckpointError):
            load(b"")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


# What real writers store


def stored(tmp_path: Path, state_dict: dict[str, object]) -> bytes:
    dcp.save(state_dict, storage_writer=dcp.FileSystemWriter(tmp_path))
    return (tmp_path / ".metadata").read_bytes()


def as_torch_reads(data: bytes) -> Metadata:
    expected = pickle.loads(data)
    expected.storage_meta.checkpoint_id = PurePosixPath(expected.storage_meta.checkpoint_id)
    return expected


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_metadata_of_a_plain_training_job(tmp_path: Path) -> None:
    """Model, AdamW, scheduler and random states: all that torch's writer stores is on the list."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    data = stored(
        tmp_path,
        {
            "model": model.state_dict(),
            "optim": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": [torch.get_rng_state(), random.getstate()],
            "nested": {"a": [1, {"b": torch.zeros(2, dtype=torch.float16).t()}], "c": OrderedDict(d=None)},
        },
    )
    assert load(data) == as_torch_reads(data)


@pytest.mark.filterwarnings("ignore:DTensor random operators")  # torch 2.6 says it of every mesh of CPUs
@pytest.mark.usefixtures("one_rank")
def test_metadata_of_distributed_tensors(tmp_path: Path) -> None:
    """DTensors leave no names of their own."""
    mesh = init_device_mesh("cpu", (1,))
    placements = {"shard": Shard(0), "columns": Shard(1), "whole": Replicate()}
    data = stored(
        tmp_path, {name: distribute_tensor(torch.randn(4, 4), mesh, [place]) for name, place in placements.items()}
    )
    assert load(data) == as_torch_reads(data)


@pytest.mark.usefixtures("one_rank")
def test_metadata_of_fsdp2(tmp_path: Path) -> None:
    """Sharded models and their optimizer states leave no names of their own."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():  # made by hand: torch 2.6 cannot run a sharded model on CPUs
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    data = stored(tmp_path, {"model": model_state, "optim": optimizer_state})
    assert load(data) == as_torch_reads(data)


def renamed(data: bytes, names: dict[tuple[str, str], tuple[str, str]]) -> bytes:
    """Rewrite the names in a protocol 2 pickle."""
    for (module, name), (new_module, new_name) in names.items():
        old = f"c{module}\n{name}\n".encode()
        assert old in data
        data = data.replace(old, f"c{new_module}\n{new_name}\n".encode())
    return data


def test_metadata_of_old_torch() -> None:
    """Up to torch 2.2 the properties of tensors lived in another module."""
    new, old = "torch.distributed.checkpoint.metadata", "torch.distributed._shard.sharded_tensor.metadata"
    data = renamed(
        pickle.dumps(sample(), protocol=2),
        {
            (new, "TensorProperties"): (old, "TensorProperties"),
            (new, "_MEM_FORMAT_ENCODING"): (old, "MEM_FORMAT_ENCODING"),
        },
    )
    assert load(data) == sample()


def test_metadata_of_newer_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a newer torch says of a tensor after all that is known here (2.15: strides) is passed over."""
    known = TensorProperties.__getstate__
    monkeypatch.setattr(TensorProperties, "__getstate__", lambda self: (*known(self), (3, 1)))
    data = dump_metadata(sample())
    monkeypatch.undo()
    assert load(data) == sample()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath"])
def test_paths_of_every_python(module: str, name: str) -> None:
    """A path pickled on another system or a newer Python is read as a pure path."""
    metadata = sample()
    metadata.storage_meta = StorageMeta(checkpoint_id=PurePosixPath("/tmp/x"))
    data = renamed(pickle.dumps(metadata, protocol=2), {(PurePosixPath.__module__, "PurePosixPath"): (module, name)})
    assert load(data).storage_meta == metadata.storage_meta


# The ways out


class Custom:
    """What a planner of a user may keep in planner_data."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom)

    __hash__ = None


def test_the_hook_allows_more_names() -> None:
    """A caller may allow names of its own, one by one."""
    data = dump_metadata(sample({"custom": Custom()}))
    with pytest.raises(UnsafeCheckpointError, match="Custom"):
        load(data)
    asked: list[tuple[str, str]] = []

    def hook(module: str, name: str) -> object | None:
        asked.append((module, name))
        return Custom if name == "Custom" else None

    assert load_metadata(data, key=KEY, extra_allowed=hook).planner_data == {"custom": Custom()}
    assert asked == [(__name__, "Custom")]
    assert load_metadata(dump_metadata(sample(Custom())), key=KEY, extra_allowed=hook).planner_data == Custom()
    with pytest.raises(CorruptCheckpointError, match="paths"):
        load_metadata(dump_metadata(sample({"w": ["w", 10**12]})), key=KEY, extra_allowed=hook)
    with pytest.raises(UnsafeCheckpointError, match="eval"):
        load_metadata(dump_metadata(sample(Call(eval, "1"))), key=KEY, extra_allowed=hook)


def test_unsafe_loading_is_asked_for() -> None:
    """With unsafe=True anything goes, and the result is still checked."""
    data = dump_metadata(sample(Call(eval, "6 * 7")))
    assert load_metadata(data, key=KEY, unsafe=True).planner_data == 42
    with pytest.raises(CorruptCheckpointError):
        load_metadata(pickle.dumps(3), key=KEY, unsafe=True)


def test_unpicklable_planner_data_is_named() -> None:
    """What a planner left behind and cannot be stored is a typed error before anything is written."""
    with pytest.raises(UnsupportedFormatError, match="planner_data"):
        dump_metadata(sample(planner_data=lambda: None))
