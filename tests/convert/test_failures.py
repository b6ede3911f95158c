"""Conversions that cannot be are refused by type, and leave what was there."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata

from dcp_cloud import CloudStorageWriter, CloudTorchSaveReader, convert_checkpoint, open_store
from dcp_cloud.convert.values import nested
from dcp_cloud.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    DcpCloudError,
    IncompleteCheckpointError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from dcp_cloud.stores.memory import MemoryStore

RAN: list[str] = []


class Hostile:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> Any:
        return RAN.append, ("ran",)


class Settings:
    """A harmless class of the user's own."""

    def __init__(self, depth: object) -> None:
        self.depth = depth


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    """A file of torch.save does not choose what runs here, and nothing of the target is made."""
    torch.save({"a": torch.ones(2), "b": Hostile()}, tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError):
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "dcp")
    assert RAN == []
    assert files(tmp_path / "dcp") == []


def test_values_that_run_code_are_refused(tmp_path: Path) -> None:
    """Nor does a value of a distributed checkpoint."""
    dcp.save({"a": torch.ones(2), "b": Settings(3)}, storage_writer=CloudStorageWriter(tmp_path / "dcp"))
    with pytest.raises(UnsafeCheckpointError):
        convert_checkpoint(tmp_path / "dcp", tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()


def test_pickles_of_ones_own_convert_when_asked_for(tmp_path: Path) -> None:
    """allow_unsafe_pickle opens what is refused otherwise, both ways."""
    torch.save({"a": torch.ones(2), "b": Settings(3)}, tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "dcp", allow_unsafe_pickle=True)
    convert_checkpoint(tmp_path / "dcp", tmp_path / "n.pt", allow_unsafe_pickle=True)
    assert torch.load(tmp_path / "n.pt", weights_only=False)["b"].depth == 3


@pytest.mark.parametrize("elements", [10, 500_000], ids=["short", "long"])
@pytest.mark.parametrize("target", ["dcp", "m.safetensors"])
def test_a_damaged_byte_is_noticed(tmp_path: Path, target: str, elements: int) -> None:
    """The file's own checksums are compared before the end of a tensor is sent; a target that was there stays."""
    torch.save({"a": torch.full((elements,), 1.5), "z": torch.ones(5)}, tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "to" / target)
    before = {path: path.read_bytes() for path in files(tmp_path / "to")}
    data = bytearray((tmp_path / "m.pt").read_bytes())
    at = data.index(torch.full((3,), 1.5).numpy().tobytes())
    data[at + 4 * elements - 2] ^= 1
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="'a'"):
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "to" / target)
    assert {path: path.read_bytes() for path in files(tmp_path / "to")} == before


def test_values_do_not_vanish_in_safetensors(tmp_path: Path) -> None:
    """What the form cannot hold is named, and one can choose what to convert."""
    dcp.save({"model": {"a": torch.ones(2)}, "epoch": 3}, storage_writer=CloudStorageWriter(tmp_path / "dcp"))
    with pytest.raises(UnsupportedFormatError, match="epoch"):
        convert_checkpoint(tmp_path / "dcp", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    assert convert_checkpoint(tmp_path / "dcp", tmp_path / "m.safetensors", only="model.").tensors == 1


@pytest.mark.parametrize(
    ("source", "target", "options", "kind"),
    [
        ("m.pt", "m.pt", {}, ConfigError),
        ("m.pt", "dir", {"to": "torch"}, ConfigError),
        ("m.pt", "x.safetensors", {"to": "dcp"}, ConfigError),
        ("m.pt", "dir", {"to": "nonsense"}, ConfigError),
        ("m.pt", "dir", {"max_shard_bytes": 0}, ConfigError),
        ("m.pt", "dir", {"only": "nothing."}, UnsupportedFormatError),
        ("dcp", "dir", {"to": "dcp"}, ConfigError),
        ("none.pt", "dir", {}, CheckpointNotFoundError),
        ("none", "dir", {}, CheckpointNotFoundError),
        ("none.safetensors", "dir", {}, IncompleteCheckpointError),
        ("tensor.pt", "dir", {}, UnsupportedFormatError),
        ("sparse.pt", "dir", {}, UnsupportedFormatError),
        ("conj.pt", "dir", {}, UnsupportedFormatError),
        ("text.pt", "dir", {}, UnsupportedFormatError),
        ("empty.pt", "dir", {}, CorruptCheckpointError),
        ("double.pt", "x.safetensors", {}, UnsupportedFormatError),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    tmp_path: Path, source: str, target: str, options: dict[str, Any], kind: type[DcpCloudError]
) -> None:
    """Contradictions and foreign files are told by type, and nothing is made."""
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    dcp.save({"a": torch.ones(2)}, storage_writer=CloudStorageWriter(tmp_path / "dcp"))
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"a": torch.ones(3, dtype=torch.complex64).conj()}, tmp_path / "conj.pt")
    torch.save({"a": torch.ones(3, dtype=torch.complex128)}, tmp_path / "double.pt")
    (tmp_path / "text.pt").write_bytes(b"no archive at all, however long it may be" * 10)
    (tmp_path / "empty.pt").write_bytes(b"")
    before = files(tmp_path)
    with pytest.raises(kind) as caught:
        convert_checkpoint(tmp_path / source, tmp_path / target, **options)
    assert type(caught.value) is kind
    assert sorted(files(tmp_path)) == sorted(before)


@pytest.mark.parametrize("target", ["dcp", "to.pt", "to.safetensors", "hf"])
def test_overwrite_false_keeps_what_is_there(tmp_path: Path, target: str) -> None:
    """Nothing at the target is replaced unless it may be."""
    (tmp_path / "m").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "m" / "m.pt")
    convert_checkpoint(tmp_path / "m" / "m.pt", tmp_path / "m" / "dcp")
    source = tmp_path / "m" / ("dcp" if target == "to.pt" else "m.pt")
    form: Any = "safetensors" if target == "hf" else None
    convert_checkpoint(source, tmp_path / target, to=form)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    with pytest.raises(CheckpointExistsError):
        convert_checkpoint(source, tmp_path / target, to=form, overwrite=False)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


@pytest.mark.parametrize(
    ("source", "target", "only"),
    [
        ("model-00001-of-00002.safetensors", "", ""),
        ("model-00001-of-00002.safetensors", "", "enc."),
        ("model.safetensors", "", "enc."),
        ("", "model-00002-of-00002.safetensors", ""),
    ],
)
def test_a_model_is_not_converted_over_its_own_files(tmp_path: Path, source: str, target: str, only: str) -> None:
    """A conversion never replaces or removes what it reads, and removes nothing beside it."""
    model = tmp_path / "d"
    model.mkdir()
    if source == "model.safetensors":
        save_file({"enc.a": torch.ones(3), "dec.b": torch.ones(2)}, model / source)
    else:
        save_file({"enc.a": torch.ones(3)}, model / "model-00001-of-00002.safetensors")
        save_file({"b": torch.ones(3)}, model / "model-00002-of-00002.safetensors")
    before = {path: path.read_bytes() for path in files(model)}
    with pytest.raises(ConfigError, match="own files"):
        convert_checkpoint(model / source, model / target, to="safetensors", only=only)
    assert {path: path.read_bytes() for path in files(model)} == before


def test_tensors_within_values_do_not_lose_their_data(tmp_path: Path) -> None:
    """A tensor in a set or an object cannot be read by ranges: the entry is named, and nothing is made of it."""
    torch.save({"a": torch.ones(2), "set": {torch.ones(2)}, "box": Settings(torch.ones(3))}, tmp_path / "m.pt")
    for name in ("set", "box"):
        reader = CloudTorchSaveReader(tmp_path / "m.pt", safe_globals=[Settings])
        with pytest.raises(dcp.api.CheckpointException) as caught:
            dcp.load({name: None}, storage_reader=reader)
        assert isinstance(caught.value.failures[0][0], UnsupportedFormatError)
        assert f"'{name}'" in str(caught.value.failures[0][0])
    found = {"a": torch.zeros(2)}
    dcp.load(found, storage_reader=CloudTorchSaveReader(tmp_path / "m.pt", safe_globals=[Settings]))
    assert found["a"].tolist() == [1, 1]
    for target in ("dcp", "n.pt"):
        with pytest.raises(UnsupportedFormatError, match="holds tensors"):
            convert_checkpoint(
                tmp_path / "m.pt", tmp_path / target, to="dcp" if target == "dcp" else None, allow_unsafe_pickle=True
            )
    assert files(tmp_path) == [tmp_path / "m.pt"]


def test_equal_names_on_two_servers_are_two_places() -> None:
    """A bucket of the same name on another endpoint can be converted to."""
    source, target = MemoryStore("server 1"), MemoryStore("server 2")
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    source.put("m.pt", [memoryview(buffer.getvalue())])
    uris = [f"s3://bucket/d/m.pt?endpoint_url=http://127.0.0.1:{port}" for port in (1, 2)]
    convert_checkpoint(*uris, to="torch", source_store=source, target_store=target)
    assert [meta.key for meta in target.list()] == ["m.pt"]
    with pytest.raises(ConfigError, match="the same"):
        convert_checkpoint(uris[0], uris[0], to="torch", source_store=source, target_store=target)


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """Its table of contents is of one version, its bytes of another: that is no success."""
    torch.save({"a": torch.ones(3)}, tmp_path / "m.pt")
    reader = CloudTorchSaveReader(tmp_path / "m.pt")
    metadata = reader.read_metadata()
    torch.save({"a": torch.zeros(3)}, tmp_path / "m.pt")
    reader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load({"a": torch.zeros(3)}, storage_reader=reader)
    assert isinstance(caught.value.failures[0][0], IncompleteCheckpointError)


@pytest.mark.parametrize("path", [("x", 10**9), ("x", -1), (), ("x", "y", "z")])
def test_forged_paths_make_no_endless_lists(path: tuple[Any, ...]) -> None:
    """Where a value belongs is told by .metadata, which is not trusted."""
    with pytest.raises(CorruptCheckpointError):
        nested({"a": 1, "b": 2}, {"a": ("x", "y"), "b": path}, where="here")


def test_a_failing_target_leaves_nothing() -> None:
    """A part that cannot be stored ends the conversion; neither objects nor uploads remain."""
    from dcp_cloud.testing import Fault, FaultyStore

    source, inner = MemoryStore("source"), MemoryStore("target")
    buffer = io.BytesIO()
    torch.save({"a": torch.randn(3000, 2000), "b": torch.ones(4)}, buffer)
    source.put("m.pt", [memoryview(buffer.getvalue())])
    target = FaultyStore(inner, faults=[Fault(kind="refuse", verb="put_part", nth=1)])
    with pytest.raises(DcpCloudError):
        convert_checkpoint("memory://source/m.pt", "memory://target", target_store=target)
    assert list(inner.list()) == []
    assert list(inner.list_multiparts()) == []


def test_hostile_metadata_is_refused(tmp_path: Path) -> None:
    """A .metadata that names code is not opened by a conversion either."""
    dcp.save({"a": torch.ones(2)}, storage_writer=CloudStorageWriter(tmp_path / "dcp"))
    metadata = Metadata(state_dict_metadata={}, planner_data={"a": Hostile()}, storage_data={})
    open_store(f"file://{tmp_path}/dcp").put(".metadata", [memoryview(pickle.dumps(metadata))])
    with pytest.raises(UnsafeCheckpointError):
        convert_checkpoint(tmp_path / "dcp", tmp_path / "m.pt")
    assert RAN == []


def test_the_command_line_converts(tmp_path: Path, run: Callable[..., Any]) -> None:
    """``dcp-cloud convert`` tells the forms from the names, and what it did, in words and as JSON."""
    torch.save({"model": {"a": torch.ones(2, 3)}, "epoch": 3}, tmp_path / "m.pt")
    ran = run("convert", f"{tmp_path}/m.pt", f"{tmp_path}/dcp")
    assert ran.code == 0, ran.err
    assert "tensors  1, 1 other value" in ran.out
    ran = run("convert", f"{tmp_path}/dcp", f"{tmp_path}/hf", "--only", "model.", "--json")
    assert ran.code == 0, ran.err
    assert '"target_form": "safetensors"' in ran.out
    assert '"schema": "dcp-cloud/convert"' in ran.out


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("m.pt", "m2.pt", "--to", "dcp"), 2),
        (("m.pt", "dcp"), 1),
        (("none.pt", "dcp2"), 3),
        (("bad.pt", "dcp2"), 1),
        (("m.pt", "dcp2", "--max-shard-size", "large"), 2),
    ],
    ids=["contradiction", "exists", "missing", "unsafe", "size"],
)
def test_the_command_line_refuses(tmp_path: Path, run: Callable[..., Any], args: tuple[str, ...], code: int) -> None:
    """Exit codes are those of all commands, and there is no traceback."""
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    torch.save({"a": Settings(3)}, tmp_path / "bad.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "dcp")
    source, target, *options = args
    ran = run("convert", f"{tmp_path}/{source}", f"{tmp_path}/{target}", *options)
    assert ran.code == code
    assert "Traceback" not in ran.err
