from __future__ import annotations

import gc
import os
import pickle
import pickletools
import random
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
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

from dcp_cloud.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFormatError
from dcp_cloud.format.layout import RawData, StoredItem, from_storage_info, to_storage_info
from dcp_cloud.format.metadata import dump_metadata, load_metadata

KEY = "run/.metadata"


def sample(planner_data: object = None) -> Metadata:
    chunk = ChunkStorageMetadata(offsets=torch.Size([0, 0]), sizes=torch.Size([2, 3]))
    properties = TensorProperties(dtype=torch.bfloat16, memory_format=torch.channels_last)
    return Metadata(
        state_dict_metadata={
            "w": TensorStorageMetadata(properties=properties, size=torch.Size([2, 3]), chunks=[chunk]),
            "step": BytesStorageMetadata(),
        },
        planner_data=planner_data,
        storage_data={
            MetadataIndex("w", [0, 0], 0): _StorageInfo("__0_0.distcp", 10, 2000),
            MetadataIndex("step"): _StorageInfo("__0_0.distcp", 0, 10),
        },
        storage_meta=StorageMeta(checkpoint_id="s3://b/p", save_id="1"),
    )


def load(data: bytes) -> Metadata:
    return load_metadata(data, key=KEY)


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


def stored(tmp_path: Path, state_dict: dict[str, object], **options: object) -> bytes:
    dcp.save(state_dict, storage_writer=dcp.FileSystemWriter(tmp_path), **options)
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
        no_dist=True,
    )
    assert load(data) == as_torch_reads(data)


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
    model(torch.randn(5, 4)).sum().backward()
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


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath"])
def test_paths_of_every_python(module: str, name: str) -> None:
    """A path pickled on another system or a newer Python is read as a pure path."""
    metadata = sample()
    metadata.storage_meta = StorageMeta(checkpoint_id=PurePosixPath("/tmp/x"))
    data = renamed(pickle.dumps(metadata, protocol=2), {(PurePosixPath.__module__, "PurePosixPath"): (module, name)})
    assert load(data).storage_meta == metadata.storage_meta


# What hostile writers store


class Call:
    """Pickles to a call."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, ".eval"), (getattr, ".getattr"), (type, ".type")],
)
def test_calls_are_refused_by_name(protocol: int, function: object, name: str) -> None:
    """A call hidden in planner_data is refused, named, and not made; the message tells the way out."""
    data = pickle.dumps(sample({"deep": [Call(function, "echo pwned")]}), protocol=protocol)
    with pytest.raises(UnsafeCheckpointError) as caught:
        load(data)
    text = str(caught.value)
    assert KEY in text
    assert "extra_allowed" in text
    if protocol >= 2:  # below, torch's own objects already need names that are not allowed
        assert name in text


def stack_global(module: str, name: str, rest: bytes = b"") -> bytes:
    """Write a protocol 4 pickle that looks up one name and goes on with ``rest``."""
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + texts + b"\x93" + rest + b"."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "serialization.os.system"),
        ("torch", "Size.__class__"),
        ("torch", "load"),
        ("torch", "Tensor"),
        ("torch", "strided"),
        ("torch.distributed.checkpoint.metadata", "os"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "Metadata.__init__"),
        ("torch.distributed.checkpoint", "Metadata"),
        ("copyreg", "_reconstructor"),
        ("copyreg", "__newobj__"),
        ("builtins", "object"),
        ("pathlib", "Path"),
        ("", ""),
    ],
)
def test_near_misses_are_refused(module: str, name: str) -> None:
    """Module and name must match exactly: no attribute of an allowed thing is reachable."""
    with pytest.raises(UnsafeCheckpointError):
        load(stack_global(module, name))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02(cposix\nsystem\nX\x02\0\0\0id" + b"o.",
        b"(X\x02\0\0\0idiposix\nsystem\n.",
        b"Pmodule\n.",
        b"\x80\x04K\x01Q.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x84\x01\0\0\0.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x05\x97.",
    ],
    ids=["OBJ", "INST", "PERSID", "BINPERSID", "EXT1", "EXT4", "BYTEARRAY8", "NEXT_BUFFER"],
)
def test_needless_instructions_are_refused(data: bytes) -> None:
    """Instructions that reach outside of the pickle are refused, whatever they name."""
    with pytest.raises(UnsafeCheckpointError):
        load(data)


ALLOWED = "torch.distributed.checkpoint.metadata"


@pytest.mark.parametrize(
    "data",
    [
        stack_global("torch", "Size", b"(K\x01K\x02tR"),
        stack_global("torch", "Size", b"X\x03\0\0\0abc\x85R"),
        stack_global("torch", "Size", b"(" + b"K\x01" * 65 + b"t\x85R"),
        stack_global("collections", "OrderedDict", b"}\x85R"),
        stack_global("pathlib", "PosixPath", b"X\x10\x27\0\0" + b"a" * 10_000 + b"\x85R"),
        stack_global("torch.serialization", "_get_layout", b"X\x02\0\0\0id\x85R"),
        stack_global(ALLOWED, "Metadata", b"}N}\x87R"),
        stack_global(ALLOWED, "MetadataIndex", b"X\x01\0\0\0w\x85R"),
        stack_global(ALLOWED, "Metadata", b"}b"),
        stack_global(ALLOWED, "Metadata", b")\x81K\x01b"),
        stack_global(ALLOWED, "ChunkStorageMetadata", b")\x81}b"),
        stack_global(ALLOWED, "TensorProperties", b")\x81)b"),
        stack_global(ALLOWED, "Metadata", b")\x81"),
        stack_global(ALLOWED, "_MEM_FORMAT_ENCODING", b"K\x07\x85R"),
        stack_global(ALLOWED, "BytesStorageMetadata", b")\x81"),
        pickle.dumps({"a": 1}),
        pickle.dumps(None),
    ],
)
def test_strange_uses_of_allowed_names_are_damage(data: bytes) -> None:
    """An allowed name used in a way that no writer uses it ends in a typed error."""
    with pytest.raises(CorruptCheckpointError, match=r"\.metadata"):
        load(data)


@pytest.mark.parametrize(
    ("module", "name", "make"),
    [
        (ALLOWED, "Metadata", b""),
        (ALLOWED, "TensorProperties", b""),
        (ALLOWED, "_MEM_FORMAT_ENCODING", b""),
        (ALLOWED, "_MEM_FORMAT_ENCODING", b"K\x00\x85R"),
        ("torch", "Size", b""),
        ("torch", "float32", b""),
        ("torch.serialization", "_get_layout", b""),
        ("pathlib", "PosixPath", b""),
        ("collections", "OrderedDict", b""),
    ],
)
def test_nothing_of_this_process_can_be_changed(module: str, name: str, make: bytes) -> None:
    """BUILD sets attributes; it never reaches a class, an enum or a function that others use."""
    evil = b"X\x04\0\0\0evilK\x01"
    slots = b"X\x09\0\0\0__slots__K\x01"
    for build in (b"N}" + evil + b"s\x86b", b"}" + evil + b"sb", b"N}" + slots + b"s\x86b"):
        with pytest.raises(CheckpointError):
            load(stack_global(module, name, make + build))
    for real in (Metadata, TensorProperties, _MEM_FORMAT_ENCODING, *_MEM_FORMAT_ENCODING, torch.Size, PurePosixPath):
        assert not hasattr(real, "evil")
    assert not hasattr(torch.serialization._get_layout, "evil")
    assert not hasattr(OrderedDict, "evil")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        b"K\x01p99999999999\n.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x04\x8b\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"\x80\x04" + b"]" * 300_000 + b".",
        b"\x80\x04" + b"(" * 300_000 + b".",
        b"\x80\x04)" + b"\x85" * 300_000 + b".",
        b"\x80\x04" + b"]\x94" + b"h\x00a" * 1000 + b".",
    ],
    ids=["memo", "put", "text", "bytes", "long4", "frame", "int", "long", "lists", "marks", "tuples", "cycle"],
)
def test_bombs_end_in_typed_errors(data: bytes) -> None:
    """Huge memos, lengths, numbers and depths are refused without the memory that they ask for."""
    with pytest.raises(CheckpointError):
        load(data)


def test_huge_numbers_are_left_to_the_layout() -> None:
    """A number beyond any object's length is loaded, and refused where it is used."""
    metadata = sample()
    metadata.storage_data[MetadataIndex("w", [0, 0], 0)].offset = 1 << 100_000
    loaded = load(dump_metadata(metadata))
    with pytest.raises(CorruptCheckpointError):
        from_storage_info(loaded.storage_data[MetadataIndex("w", [0, 0])])


@given(st.data())
def test_damage_ends_in_typed_errors(data: st.DataObject) -> None:
    """With bytes changed, cut off or doubled, metadata loads or fails with an error of this package."""
    pickled = bytearray(dump_metadata(sample({"w": ("a", 1)})))
    for _ in range(data.draw(st.integers(1, 3))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    start, stop = sorted(data.draw(st.tuples(st.just(0) | st.integers(0, 20), st.integers(0, len(pickled)))))
    for changed in (bytes(pickled), bytes(pickled[start:stop])):
        try:
            assert isinstance(load(changed), Metadata)
        except CheckpointError as error:
            assert error.key == KEY  # noqa: PT017 - loading well is also allowed


@given(st.binary(max_size=200))
def test_noise_ends_in_typed_errors(data: bytes) -> None:
    """Arbitrary bytes are no metadata."""
    with pytest.raises(CheckpointError):
        load(data)


def test_the_scan_knows_every_instruction() -> None:
    """Whatever pickle writes for ordinary values passes, at every protocol."""
    values = [1, -1, 300, 1 << 40, 1 << 3000, 1.5, True, None, "é" * 300, b"x" * 300, (), (1,), (1, 2, 3, 4), [1, 2]]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        plain = [value for value in values if protocol >= 3 or not isinstance(value, bytes)]
        data = pickle.dumps(sample(), protocol=2) if protocol < 2 else pickle.dumps(sample(plain), protocol=protocol)
        assert load(data).storage_data == sample().storage_data
    assert len({opcode.code for opcode in pickletools.opcodes}) == len(pickletools.opcodes)


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
