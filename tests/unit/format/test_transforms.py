from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import IO

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo

from dcp_cloud.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError
from dcp_cloud.format.items import load_item
from dcp_cloud.format.metadata import dump_metadata, load_metadata
from dcp_cloud.format.transforms import transform_bytes, undo_transforms
from tests.unit.format.strategies import as_torch_saves

extension = pytest.importorskip("torch.distributed.checkpoint._extension", reason="torch 2.6 has no transforms")
ExtensionRegistry, StreamTransformExtension = extension.ExtensionRegistry, extension.StreamTransformExtension
ZStandard = extension.ZStandard


class _Mask(io.RawIOBase):
    """Adds a key to each byte, on the way to or from another stream."""

    def __init__(self, stream: IO[bytes], key: int) -> None:
        self.stream, self.key = stream, key

    def readable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")
        self.stream.write(bytes((byte + self.key) % 256 for byte in view))
        return len(view)

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)
        data = self.stream.read(len(view))
        view[: len(data)] = bytes((byte - self.key) % 256 for byte in data)
        return len(data)

    def flush(self) -> None:
        if not self.closed and self.stream.writable():
            self.stream.flush()

    def close(self) -> None:
        super().close()
        self.stream.close()


class Mask(StreamTransformExtension):
    """An extension as a user would write it."""

    @staticmethod
    def registry_name() -> str:
        return "mask@tests"

    @staticmethod
    def from_descriptor(version: str) -> Mask:
        return Mask()

    def get_descriptor(self) -> str:
        return "mask@tests/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return _Mask(output, 7)

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:  # noqa: A002 - torch's name
        return _Mask(input, 7)


def registry() -> ExtensionRegistry:
    known = ExtensionRegistry()
    known.register(Mask)
    return known


def undo(data: bytes, descriptors: list[str], limit_nbytes: int = 1 << 20) -> bytes:
    return undo_transforms(data, descriptors, registry(), limit_nbytes=limit_nbytes, key="k")


CHAINS = [[], [ZStandard()], [Mask()], [ZStandard(), Mask()], [Mask(), ZStandard()], [Mask(), ZStandard(), Mask()]]


@pytest.mark.parametrize("extensions", CHAINS, ids=lambda chain: "+".join(type(each).__name__ for each in chain) or "-")
@pytest.mark.parametrize("item", [b"", b"PK\x03\x04 and more" * 1000], ids=["empty", "item"])
def test_a_chain_is_undone(extensions: list[StreamTransformExtension], item: bytes) -> None:
    """Whatever was applied is undone from the descriptors alone."""
    stored, descriptors = transform_bytes(item, extensions)
    assert len(descriptors) == len(extensions)
    assert undo(stored, descriptors) == item


@pytest.mark.parametrize("extensions", CHAINS, ids=len)
def test_files_of_torch_are_read(extensions: list[StreamTransformExtension], tmp_path: Path) -> None:
    """Items that torch's writer transformed are read, chains that torch itself cannot read back too."""
    tensor = torch.arange(1000.0)
    dcp.save({"a": tensor}, storage_writer=dcp.FileSystemWriter(tmp_path, _extensions=extensions), no_dist=True)
    metadata = load_metadata((tmp_path / ".metadata").read_bytes(), key=".metadata")
    (info,) = metadata.storage_data.values()
    stored = (tmp_path / info.relative_path).read_bytes()[info.offset :][: info.length]
    item = undo(stored, info.transform_descriptors or [])
    assert torch.equal(load_item(item, key="k"), tensor)


@pytest.mark.parametrize("extensions", CHAINS, ids=len)
def test_torch_reads_what_was_transformed(extensions: list[StreamTransformExtension], tmp_path: Path) -> None:
    """torch's reader opens our items, whatever the length of the chain."""
    tensor = torch.arange(1000.0)
    dcp.save({"a": tensor}, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    metadata = load_metadata((tmp_path / ".metadata").read_bytes(), key=".metadata")
    stored, descriptors = transform_bytes(as_torch_saves(tensor), extensions)
    (tmp_path / "ours.distcp").write_bytes(b"before" + stored)
    info = _StorageInfo("ours.distcp", 6, len(stored), transform_descriptors=descriptors)
    metadata.storage_data = dict.fromkeys(metadata.storage_data, info)
    (tmp_path / ".metadata").write_bytes(dump_metadata(metadata))
    target = {"a": torch.zeros(1000)}
    dcp.load(target, storage_reader=dcp.FileSystemReader(tmp_path, _extension_registry=registry()), no_dist=True)
    assert torch.equal(target["a"], tensor)


def test_bombs_are_stopped_at_the_limit() -> None:
    """An item that swells beyond its limit is refused after the limit, not after the memory."""
    stored, descriptors = transform_bytes(bytes(64 << 20), [ZStandard()])
    assert len(stored) < 1 << 16
    with pytest.raises(CorruptCheckpointError, match="longer than"):
        undo(stored, descriptors)
    exact, descriptors = transform_bytes(b"x" * 100, [ZStandard()])
    assert undo(exact, descriptors, limit_nbytes=100) == b"x" * 100
    with pytest.raises(CorruptCheckpointError, match="longer than"):
        undo(exact, descriptors, limit_nbytes=99)


def test_too_many_transforms_are_damage() -> None:
    """A long list of transforms is no list that a writer made."""
    with pytest.raises(CorruptCheckpointError, match="17 transforms"):
        undo(b"", ["mask@tests/1"] * 17)


@pytest.mark.parametrize("descriptor", ["unknown/1", "", "stream.zstd/9", "stream.zstd"])
def test_unknown_extensions_are_named(descriptor: str) -> None:
    """An extension that is not available is a typed error with its name and the way out."""
    with pytest.raises(UnsupportedFormatError, match="registry") as caught:
        undo(b"", [descriptor])
    assert repr(descriptor) in str(caught.value)


def test_a_torch_without_extensions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6 has no extensions; an item that was stored with one is a typed error there."""
    monkeypatch.setitem(sys.modules, "torch.distributed.checkpoint._extension", None)
    monkeypatch.delattr(dcp, "_extension")
    with pytest.raises(UnsupportedFormatError, match=r"stream\.zstd"):
        undo_transforms(b"", ["stream.zstd/1"], limit_nbytes=10, key="k")


def test_without_a_registry_torch_s_own_is_used() -> None:
    """Zstandard is known without any setting; the user's extension is not."""
    stored, descriptors = transform_bytes(b"abc", [ZStandard()])
    assert undo_transforms(stored, descriptors, limit_nbytes=10, key="k") == b"abc"
    with pytest.raises(UnsupportedFormatError, match="mask@tests"):
        undo_transforms(b"", ["mask@tests/1"], limit_nbytes=10, key="k")


@given(st.binary(max_size=100), st.sampled_from([[ZStandard()], [ZStandard(), Mask()]]))
def test_damage_is_typed(data: bytes, extensions: list[StreamTransformExtension]) -> None:
    """Arbitrary bytes are transformed into something or end in an error of this package."""
    try:
        assert len(undo(data, [each.get_descriptor() for each in extensions])) <= 1 << 20
    except CheckpointError as error:
        assert error.key == "k"  # noqa: PT017 - succeeding is also allowed
