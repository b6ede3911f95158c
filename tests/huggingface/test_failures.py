"""What is wrong with files and states is told by type, and never loads as numbers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudHuggingFaceStorageReader, CloudHuggingFaceStorageWriter, consolidate_safetensors, open_store
from dcp_cloud.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    DcpCloudError,
    IncompleteCheckpointError,
    TransferCancelledError,
    UnsupportedFormatError,
)
from dcp_cloud.testing import Fault, FaultyStore
from tests.checkpoint.conftest import every_cloud

INDEX = "model.safetensors.index.json"
STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}
MAPPING = {"a": 1, "b": 2}


@pytest.fixture
def uri(place: Callable[..., str]) -> str:
    return place()


# Where the store does not matter.
in_memory = pytest.mark.parametrize("place", ["memory"], indirect=True)


def put(uri: str, name: str, data: bytes) -> None:
    open_store(uri).put(name, [memoryview(data)])


def read(uri: str, name: str) -> bytes:
    return open_store(uri).get(name, max_bytes=2**20).data


def save_model(uri: str, state: dict[str, Any], **options: Any) -> BaseException | None:
    return outcome(lambda: dcp.save(state, storage_writer=CloudHuggingFaceStorageWriter(uri, **options)))


def load_model(uri: str, **options: Any) -> BaseException | None:
    state = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    return outcome(lambda: dcp.load(state, storage_reader=CloudHuggingFaceStorageReader(uri, **options)))


def outcome(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except CheckpointException as error:
        return error.failures[0][0]
    return None


@in_memory
@pytest.mark.parametrize(
    ("state", "kind", "text"),
    [
        ({"a": torch.ones(1), "epoch": 3, "name": "x"}, UnsupportedFormatError, "'epoch', 'name'"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, UnsupportedFormatError, "complex128"),
        ({"a": torch.ones(2, 2).to_sparse()}, UnsupportedFormatError, "sparse"),
        ({"c": torch.ones(1)}, ConfigError, "fqn_to_index_mapping"),
    ],
    ids=["values", "dtype", "sparse", "number"],
)
def test_what_the_format_cannot_hold_is_refused_before_anything_is_replaced(
    uri: str, state: dict[str, Any], kind: type[DcpCloudError], text: str
) -> None:
    """The model that was there is still there, and the message names what is wrong."""
    assert save_model(uri, STATE, fqn_to_index_mapping=MAPPING) is None
    error = save_model(uri, state, fqn_to_index_mapping={"a": 1})
    assert isinstance(error, kind)
    assert text in str(error)
    if "sparse" not in text:  # that is seen only when the tensor is sent
        assert load_model(uri) is None


@every_cloud
def test_a_missing_file_is_an_incomplete_model(uri: str) -> None:
    """A file that the index names and that is not there is not skipped."""
    save_model(uri, STATE, fqn_to_index_mapping=MAPPING)
    open_store(uri).delete(["model-00002-of-00002.safetensors"])
    error = load_model(uri)
    assert isinstance(error, IncompleteCheckpointError)
    assert "model-00002-of-00002" in str(error)


@in_memory
def test_a_missing_numbered_file_is_noticed_without_an_index(uri: str) -> None:
    """Names of files say how many there are."""
    put(uri, "model-00001-of-00002.safetensors", save(STATE))
    assert isinstance(load_model(uri), IncompleteCheckpointError)


@in_memory
def test_a_missing_last_shard_is_noticed(uri: str) -> None:
    """Shard files say how large the whole tensor is: the rest of it is missing, not smaller."""
    save_model(uri, STATE, save_distributed=True)
    (name,) = [meta.key for meta in open_store(uri).list() if meta.key.startswith("shard-")]
    data = read(uri, name)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(
        {"a": {"saved_offsets": [0, 0], "global_shape": [4, 3]}, "b": {"saved_offsets": [0]}}
    )
    put(uri, name, with_header(header, data[8 + length :]))
    error = load_model(uri)
    assert isinstance(error, IncompleteCheckpointError)
    assert "shards of 'a' are missing" in str(error)


@every_cloud
def test_a_save_that_did_not_finish_is_no_model(uri: str) -> None:
    """A failing part fails the save and leaves nothing; files without their commit are refused."""
    store = FaultyStore(open_store(uri), faults=[Fault(kind="refuse", verb="put", nth=2)])
    assert save_model(uri, STATE, fqn_to_index_mapping=MAPPING, store=store) is not None
    assert list(open_store(uri).list()) == []
    save_model(uri, STATE, fqn_to_index_mapping=MAPPING)
    open_store(uri).delete([INDEX])
    error = load_model(uri)
    assert isinstance(error, IncompleteCheckpointError)
    assert "did not finish" in str(error)


@every_cloud
def test_the_index_is_gone_before_the_first_file_is_replaced(uri: str) -> None:
    """While files of the same name are replaced nothing vouches for them: a killed save leaves no mixture."""
    save_model(uri, STATE, fqn_to_index_mapping=MAPPING)
    store = FaultyStore(open_store(uri), faults=[Fault(kind="refuse", verb="put", nth=1)])
    assert save_model(uri, STATE, fqn_to_index_mapping=MAPPING, store=store) is not None
    assert INDEX not in {meta.key for meta in open_store(uri).list()}
    assert isinstance(load_model(uri), DcpCloudError)


@every_cloud
def test_files_of_two_saves_do_not_mix(uri: str) -> None:
    """An index of one save beside a file of another is refused, though both are sound and of the same shape."""
    save_model(uri, STATE, fqn_to_index_mapping=MAPPING)
    old = read(uri, "model-00001-of-00002.safetensors")
    save_model(uri, {name: tensor + 1 for name, tensor in STATE.items()}, fqn_to_index_mapping=MAPPING)
    put(uri, "model-00001-of-00002.safetensors", old)
    error = load_model(uri)
    assert isinstance(error, IncompleteCheckpointError)
    assert "different saves" in str(error)


@every_cloud
def test_a_file_that_changes_during_the_load_is_noticed(uri: str) -> None:
    """Tensors of a file that was replaced after its header was read are not handed out as a success."""
    put(uri, "model.safetensors", save(STATE))
    reader = CloudHuggingFaceStorageReader(uri)
    metadata = reader.read_metadata()
    put(uri, "model.safetensors", save({name: tensor + 1 for name, tensor in STATE.items()}))
    reader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]
    state = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    assert isinstance(outcome(lambda: dcp.load(state, storage_reader=reader)), IncompleteCheckpointError)


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop], **changes}


@in_memory
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x02",
        (2**63).to_bytes(8, "little") + b"{}",
        (200).to_bytes(8, "little") + b"{}",
        (100_000_001).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"{x}y",
        (2 * 10**5).to_bytes(8, "little") + b"[" * 2 * 10**5,
        with_header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        with_header({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)),
        with_header({"a": entry(0, 8)}, bytes(12)),
        with_header({"a": entry(0, 80)}, bytes(8)),
        with_header({"a": entry(0, 8, shape=[3])}, bytes(8)),
        with_header({"a": entry(0, 8, shape=[-1, -2])}, bytes(8)),
        with_header({"a": entry(0, 8, shape=[2.0])}, bytes(8)),
        with_header({"a": entry(0, 8, shape=[2**62, 2**62])}, bytes(8)),
        with_header({"a": entry(0, 8, shape=[1] * 65 + [2])}, bytes(8)),
        with_header({"a": entry(8, 0)}, bytes(8)),
        with_header({"a": 3}, b""),
        with_header({"__metadata__": {"format": 3}}, b""),
        with_header({"__metadata__": {"DCP_SHARDING_INFO": "[]"}, "a": entry(0, 8)}, bytes(8)),
        with_header({"__metadata__": {"DCP_SHARDING_INFO": "{}"}, "a": entry(0, 8)}, bytes(8)),
        with_header(
            {"__metadata__": {"DCP_SHARDING_INFO": '{"a":{"saved_offsets":[-1]}}'}, "a": entry(0, 8)}, bytes(8)
        ),
        b'\x4a\0\0\0\0\0\0\0{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8",     }'[:82],
    ],
)
def test_a_header_that_lies_is_a_damaged_file(uri: str, data: bytes) -> None:
    """Lengths, ranges, shapes and texts are believed only as far as they fit the file and each other."""
    put(uri, "model.safetensors", data)
    assert isinstance(load_model(uri), CorruptCheckpointError)


@in_memory
def test_an_unknown_dtype_is_an_unsupported_file(uri: str) -> None:
    """A dtype that this torch has no name for is not read as another one."""
    put(uri, "model.safetensors", with_header({"a": entry(0, 8, dtype="F99")}, bytes(8)))
    error = load_model(uri)
    assert isinstance(error, UnsupportedFormatError)
    assert "F99" in str(error)


@in_memory
@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../other/model.safetensors"}},
        {"weight_map": {"a": "/etc/model.safetensors"}},
        {"weight_map": {"a": "s3://bucket/model.safetensors"}},
        {"weight_map": {"a": "x\\..\\model.safetensors"}},
        {"weight_map": {"a": "model.bin"}},
        {"weight_map": {"a": 3}},
        {"weight_map": {}},
        {"weight_map": ["a"]},
        {"metadata": {"dcp_cloud_file_ids": {"m": 1}}, "weight_map": {"a": "model.safetensors"}},
        {},
    ],
)
def test_an_index_names_files_of_its_own_place_only(uri: str, index: dict[str, Any]) -> None:
    """A path that leaves the model's place is refused before anything is read from there."""
    put(uri, "model.safetensors", save(STATE))
    put(uri, INDEX, json.dumps(index).encode())
    assert isinstance(load_model(uri), CorruptCheckpointError)


@in_memory
def test_an_index_must_fit_its_files(uri: str) -> None:
    """A tensor that is not in the file the index names is damage, an index that is no JSON too."""
    put(uri, "model.safetensors", save(STATE))
    put(uri, INDEX, json.dumps({"weight_map": {"zzz": "model.safetensors"}}).encode())
    assert isinstance(load_model(uri), CorruptCheckpointError)
    put(uri, INDEX, b"{")
    assert isinstance(load_model(uri), CorruptCheckpointError)


@in_memory
def test_a_tensor_in_two_files_is_ambiguous(uri: str) -> None:
    """Without an index nobody says which of two files is meant."""
    put(uri, "one.safetensors", save(STATE))
    put(uri, "two.safetensors", save(STATE))
    error = load_model(uri)
    assert isinstance(error, CorruptCheckpointError)
    assert "in two files" in str(error)


@every_cloud
def test_an_empty_place_has_no_model(uri: str) -> None:
    """Neither a load nor a consolidation takes nothing for a model."""
    assert isinstance(load_model(uri), CheckpointNotFoundError)
    with pytest.raises(CheckpointNotFoundError):
        consolidate_safetensors(uri, "memory://elsewhere/x")


@in_memory
def test_a_model_of_another_shape_does_not_load(uri: str) -> None:
    """Shapes and names are compared by the planner, as with every checkpoint."""
    save_model(uri, {"a": torch.ones(5), "b": torch.arange(4)})
    assert load_model(uri) is not None


@in_memory
@pytest.mark.skipif(
    "use_collectives" not in inspect.signature(dcp.save).parameters, reason="dcp.save has no use_collectives here"
)
def test_saves_without_collectives_are_refused(uri: str) -> None:
    """One commit has to name the files of all ranks; ignoring the argument would let ranks overwrite each other."""
    writer = CloudHuggingFaceStorageWriter(uri)
    with pytest.raises(ConfigError, match="collectives"):
        dcp.save(STATE, storage_writer=writer, use_collectives=False)
    assert list(open_store(uri).list()) == []


@in_memory
def test_a_cancelled_save_commits_nothing(uri: str) -> None:
    """``cancel`` works as with every writer: what was cancelled before its commit is no model."""

    class Cancelling(CloudHuggingFaceStorageWriter):
        def prepare_global_plan(self, plans: Any) -> Any:
            self.cancel()
            return super().prepare_global_plan(plans)

    error = outcome(lambda: dcp.save(STATE, storage_writer=Cancelling(uri)))
    assert isinstance(error, TransferCancelledError)
    assert list(open_store(uri).list()) == []
