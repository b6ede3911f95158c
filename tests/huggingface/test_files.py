"""One process: what files a save makes, and what is read from whose."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from dcp_cloud import (
    CloudHuggingFaceStorageReader,
    CloudHuggingFaceStorageWriter,
    StoreURI,
    TransferConfig,
    consolidate_safetensors,
    open_store,
)
from dcp_cloud.errors import CheckpointExistsError, ConfigError
from tests.checkpoint.states import equal, odd_tensors, random_bytes, zeros_like
from tests.huggingface.jobs import HAS_TORCHS_OWN

Place = Callable[..., str]
FIVE_MIB = TransferConfig(part_size_bytes=5 * 2**20)
# All that safetensors itself can open; complex128 is no dtype of the format.
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
every_kind = pytest.mark.parametrize("place", ["memory", "file"], indirect=True)


def state_of_all_dtypes() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {str(dtype): random_bytes((5, 7), dtype) for dtype in DTYPES}
    return state | {f"{dtype}.t": random_bytes((6, 9), dtype).t() for dtype in DTYPES}


def save(uri: str, state: dict[str, torch.Tensor], **options: object) -> CloudHuggingFaceStorageWriter:
    writer = CloudHuggingFaceStorageWriter(uri, **options)
    dcp.save(state, storage_writer=writer)
    return writer


def load(uri: str, like: dict[str, torch.Tensor], **options: object) -> dict[str, torch.Tensor]:
    state = zeros_like(like)
    dcp.load(state, storage_reader=CloudHuggingFaceStorageReader(uri, **options))
    return state


def files(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


@every_kind
@pytest.mark.parametrize("make", [state_of_all_dtypes, odd_tensors])
def test_every_tensor_comes_back(place: Place, make: Callable[[], dict[str, torch.Tensor]]) -> None:
    """All dtypes, shapes, strides and flags that torch has survive, and torch's order of elements is kept."""
    state, uri = make(), place()
    save(uri, state)
    found = load(uri, state)
    assert all(equal(found[name], value.detach()) for name, value in state.items())


def test_safetensors_opens_what_is_saved(tmp_path: Path) -> None:
    """Every dtype is under the name that the format has for it, with torch's mark in the header."""
    state = state_of_all_dtypes()
    save(f"file://{tmp_path}/m", state)
    assert equal(files(tmp_path / "m"), {name: value.contiguous() for name, value in state.items()})
    with safe_open(tmp_path / "m" / "model-00001-of-00001.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"


@pytest.mark.skipif(not HAS_TORCHS_OWN, reason="this torch has no safetensors reader to compare with")
def test_torch_loads_what_is_saved(tmp_path: Path) -> None:
    """torch's own reader opens the files, whole or sharded."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    state = {"a": torch.randn(4, 5), "b": torch.arange(6)}
    for options in ({}, {"save_distributed": True}):
        save(f"file://{tmp_path}/{len(options)}", state, **options)
        found = zeros_like(state)
        dcp.load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path / str(len(options)))))
        assert equal(found, state)


@every_kind
def test_dtypes_that_only_torch_has_names_for_come_back(place: Place) -> None:
    """Packed 4-bit floats and 8-bit exponents are stored under the format's names; safetensors opens neither."""
    names = [name for name in ("float4_e2m1fn_x2", "float8_e8m0fnu") if hasattr(torch, name)]
    state = {name: random_bytes((4, 6), torch.uint8).view(getattr(torch, name)) for name in names}
    uri = place()
    save(uri, state)
    found = {name: torch.zeros(4, 6, dtype=torch.uint8).view(value.dtype) for name, value in state.items()}
    dcp.load(found, storage_reader=CloudHuggingFaceStorageReader(uri))
    assert all(torch.equal(found[name].view(torch.uint8), state[name].view(torch.uint8)) for name in names)


def test_a_mapping_spreads_tensors_over_files(tmp_path: Path) -> None:
    """Each tensor is in the file of its number, and the index says so."""
    state = {name: torch.randn(2, 3) for name in "abcd"}
    save(f"file://{tmp_path}/m", state, fqn_to_index_mapping={"a": 1, "b": 3, "c": 1, "d": 2})
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a": "model-00001-of-00003.safetensors",
        "b": "model-00003-of-00003.safetensors",
        "c": "model-00001-of-00003.safetensors",
        "d": "model-00002-of-00003.safetensors",
    }
    assert index["metadata"]["total_size"] == 4 * 24
    assert equal(files(tmp_path / "m"), state)


def test_an_index_that_names_less_than_there_is_wins(tmp_path: Path) -> None:
    """Files beside the model, such as a copy in one file, are not part of it."""
    state = {"a": torch.ones(3)}
    save(f"file://{tmp_path}/m", state)
    save_file({"a": torch.zeros(3), "b": torch.zeros(1)}, tmp_path / "m" / "consolidated.safetensors")
    assert equal(load(f"file://{tmp_path}/m", state), state)


def test_without_an_index_there_is_what_lies_there(tmp_path: Path) -> None:
    """A single file by its own URI, model.safetensors, or all files of a place."""
    save_file({"a": torch.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    both = {"a": torch.ones(3), "b": torch.ones(2)}
    assert equal(load(f"file://{tmp_path}", both), both)
    single = {"b": torch.ones(2)}
    assert equal(load(f"file://{tmp_path}/model-00002-of-00002.safetensors", single), single)
    save_file({"a": torch.full((3,), 2.0)}, tmp_path / "model.safetensors")
    assert load(f"file://{tmp_path}", {"a": torch.zeros(3)})["a"].tolist() == [2.0] * 3


@pytest.mark.parametrize("place", ["moto"], indirect=True)
def test_large_tensors_go_in_parts_and_come_in_ranges(place: Place) -> None:
    """A tensor longer than a part is one object in the end, whatever its strides."""
    state = {"plain": torch.randn(1300, 1300), "turned": torch.randn(1200, 1300).t(), "int": torch.arange(10**6)}
    uri = place()
    writer = save(uri, state, transfer=FIVE_MIB)
    assert writer.last_save is not None
    assert writer.last_save.requests > 5
    assert equal(load(uri, state, transfer=FIVE_MIB), state)


@pytest.mark.skipif(
    "enable_plan_caching" not in inspect.signature(DefaultSavePlanner).parameters, reason="torch 2.6 caches no plans"
)
def test_a_cached_plan_saves_to_the_next_place(tmp_path: Path) -> None:
    """Plan caching gives the second save the plan of the first; names and contents are right all the same."""
    planner = DefaultSavePlanner(enable_plan_caching=True)
    for step in range(3):
        state = {"a": torch.full((3,), float(step)), "b": torch.full((2, 2), step)}
        writer = CloudHuggingFaceStorageWriter(f"file://{tmp_path}/{step}", fqn_to_index_mapping={"a": 1, "b": 2})
        dcp.save(state, storage_writer=writer, planner=planner)
        assert equal(files(tmp_path / str(step)), state)


def test_one_writer_serves_a_run_and_a_process(tmp_path: Path) -> None:
    """reset moves the writer, and it pickles, as process-mode saves need."""
    writer = pickle.loads(pickle.dumps(CloudHuggingFaceStorageWriter(f"file://{tmp_path}/0")))
    for step in range(2):
        dcp.save({"a": torch.full((3,), step)}, storage_writer=writer, checkpoint_id=f"file://{tmp_path}/{step}")
    assert [files(tmp_path / str(step))["a"][0].item() for step in range(2)] == [0, 1]


def test_a_smaller_model_replaces_a_larger_one(tmp_path: Path) -> None:
    """Nothing of the replaced model is left, and nothing that is not a model's is touched."""
    save(f"file://{tmp_path}/m", {"a": torch.ones(1), "b": torch.ones(1)}, fqn_to_index_mapping={"a": 1, "b": 2})
    (tmp_path / "m" / "adapter_model.safetensors").write_bytes(b"other")
    save(f"file://{tmp_path}/m", {"a": torch.zeros(1)})
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "adapter_model.safetensors",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]


def test_overwrite_false_keeps_a_model(tmp_path: Path) -> None:
    """A model that is there is neither replaced by a save nor by a consolidation."""
    uri = f"file://{tmp_path}/m"
    other = f"file://{tmp_path}/n"
    save(uri, {"a": torch.ones(1)})
    save(other, {"a": torch.zeros(1)}, save_distributed=True)
    with pytest.raises(dcp.api.CheckpointException) as caught:
        save(uri, {"a": torch.zeros(1)}, overwrite=False)
    assert isinstance(caught.value.failures[0][0], CheckpointExistsError)
    with pytest.raises(CheckpointExistsError):
        consolidate_safetensors(other, uri, overwrite=False)
    assert files(tmp_path / "m")["a"].item() == 1


def test_consolidation_between_stores_and_in_place(place: Place, tmp_path: Path) -> None:
    """Shards on one store become a model on another, split by length, or beside the shards."""
    state = {f"layer{i}": torch.randn(100, 50) for i in range(6)} | {"n": torch.arange(5)}
    shards = f"file://{tmp_path}/m"
    save(shards, state, save_distributed=True)
    target = place()
    summary = consolidate_safetensors(shards, target, max_file_bytes=45_000)
    assert summary.items == 7
    keys = sorted(meta.key for meta in open_store(target).list())
    assert keys == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert equal(load(target, state), state)
    consolidate_safetensors(shards, shards)
    assert equal(load(shards, state), state)
    with pytest.raises(ConfigError, match="while they are read"):
        consolidate_safetensors(target, target)
    assert StoreURI.parse(target).scheme == "s3"


def test_wrong_settings_are_refused_at_once() -> None:
    """What cannot be is said by the constructor, before anything is sent."""
    with pytest.raises(ConfigError, match="save_distributed"):
        CloudHuggingFaceStorageWriter("memory://b/p", enable_consolidation=True)
    with pytest.raises(ConfigError, match="out of range"):
        CloudHuggingFaceStorageWriter("memory://b/p", fqn_to_index_mapping={"a": 0})
