from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import PurePosixPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
    TensorProperties,
)

from dcp_cloud.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from dcp_cloud.format.layout import from_storage_info
from dcp_cloud.format.metadata import dump_metadata
from dcp_cloud.format.pickle_scan import scan_pickle
from tests.unit.format.samples import KEY, Call, load, sample


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
    assert "allow_global" in text
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
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert load(pickle.dumps(sample(), protocol=protocol)).storage_data == sample().storage_data
        data = pickle.dumps(values, protocol=protocol)
        assert scan_pickle(data) == len(data)
    assert len({opcode.code for opcode in pickletools.opcodes}) == len(pickletools.opcodes)


def test_a_path_takes_no_state() -> None:
    """A path's hash would follow what a pickle writes into it; such a path is refused, and honest ones stay paths."""
    made = b"\x80\x04\x8c\x07pathlib\x8c\x0dPurePosixPath\x93\x8c\x01a\x85R"
    with pytest.raises(CorruptCheckpointError, match="a path has a state"):
        load(made + b"N}\x8c\x05_hash)s\x86b.")
    metadata = sample({"a": ("a",)})
    metadata.storage_meta.checkpoint_id = PurePosixPath("/a/b")
    found = load(dump_metadata(load(dump_metadata(metadata))))
    assert found.storage_meta.checkpoint_id == PurePosixPath("/a/b")
    assert b"dcp_cloud.format" not in dump_metadata(found)


def test_honest_lists_may_hold_places_without_a_name() -> None:
    """Empty dicts in lists have no entry in planner_data; a thousand of them pass, and lists in lists."""
    paths = {"a": ("a", 900), **{f"{n}": ("l", n, "m", n % 7) for n in range(500)}}
    assert load(dump_metadata(sample(paths))).planner_data == paths
