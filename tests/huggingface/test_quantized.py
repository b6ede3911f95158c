"""Quantised models load as numbers, whole and in any slices, with the bits that torch's own reader gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudQuantizedHuggingFaceStorageReader, TransferConfig, open_store
from dcp_cloud.checkpoint.tiling import Box
from dcp_cloud.errors import ConfigError, UnsupportedFormatError
from dcp_cloud.huggingface.dequantise import tiles
from tests.checkpoint.conftest import every_cloud
from tests.checkpoint.states import equal, random_bytes
from tests.huggingface import jobs
from tests.support.ranks import run_ranks

SHAPE = (300, 390)


def publish(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a model as its publishers do: values and scales in different files, and an index."""
    weight_map: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names}, directory / name)
        weight_map |= dict.fromkeys(names, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def matrices(dtype: torch.dtype = torch.float8_e4m3fn) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "layer.weight": torch.randn(SHAPE).to(dtype),
        "layer.weight_scale_inv": torch.rand(3, 4) + 0.5,
        "norm.weight": torch.randn(7).bfloat16(),
    }


def groups() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "experts.up_blocks": random_bytes((3, 10, 5, 16), torch.uint8),
        "experts.up_scales": torch.randint(110, 140, (3, 10, 5), dtype=torch.uint8),
        "experts.bias": torch.randn(4),
    }


def load(uri: str, state: dict[str, torch.Tensor], **options: object) -> dict[str, torch.Tensor]:
    dcp.load(state, storage_reader=CloudQuantizedHuggingFaceStorageReader(uri, **options))
    return state


@pytest.mark.skipif(not jobs.HAS_TORCHS_QUANTISED, reason="this torch has no quantised reader to compare with")
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_blocks_become_what_torch_makes_of_them(tmp_path: Path, target_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """One scale for each block of 128 by 128, ragged at the ends; other tensors load as they are."""
    from torch.distributed.checkpoint.quantized_hf_storage import QuantizedHuggingFaceStorageReader

    publish(tmp_path, matrices(dtype))
    ours = {"layer.weight": torch.zeros(SHAPE, dtype=target_dtype), "norm.weight": torch.zeros(7).bfloat16()}
    theirs = {name: tensor.clone() for name, tensor in ours.items()}
    load(f"file://{tmp_path}", ours, target_dtype=target_dtype)
    dcp.load(theirs, storage_reader=QuantizedHuggingFaceStorageReader(str(tmp_path), target_dtype=target_dtype))
    assert equal(ours, theirs)
    assert ours["layer.weight"].count_nonzero() > 0


def reference(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Dequantise MXFP4 number by number."""
    table = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values = [*table, *(-value for value in table)]
    blocks, scales = tensors["experts.up_blocks"], tensors["experts.up_scales"]
    numbers = torch.tensor([[values[byte & 15], values[byte >> 4]] for byte in blocks.flatten().tolist()])
    factors = 2.0 ** (scales.float() - 127)
    return (numbers.reshape(3, 10, 5, 32) * factors.unsqueeze(-1)).reshape(3, 10, 160)


def test_groups_of_four_bits_become_numbers(tmp_path: Path) -> None:
    """Two values in each byte, one exponent for a group; the last dimension unfolds."""
    publish(tmp_path, groups())
    state = {"experts.up_blocks": torch.zeros(3, 10, 160), "experts.bias": torch.zeros(4)}
    load(f"file://{tmp_path}", state)
    assert equal(state["experts.up_blocks"], reference(groups()))
    assert equal(state["experts.bias"], groups()["experts.bias"])


@every_cloud
def test_every_slice_of_a_matrix_is_the_slice_of_the_whole(place: Callable[..., str], tmp_path: Path) -> None:
    """Sharded over one, two and four ranks along either dimension, off the blocks' borders."""
    publish(tmp_path, matrices())
    uri = upload(place(), tmp_path)
    whole = load(uri, {"layer.weight": torch.zeros(SHAPE)})["layer.weight"]
    for world_size in (1, 2, 4):
        for found in run_ranks(world_size, jobs.load_quantised, uri, "layer.weight", SHAPE):
            assert all(equal(tensor, whole) for tensor in found)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_slice_of_groups_is_the_slice_of_the_whole(tmp_path: Path, world_size: int) -> None:
    """Sharded along any dimension, also within a group (where torch's reader fills a part only)."""
    publish(tmp_path, groups())
    for found in run_ranks(world_size, jobs.load_quantised, f"file://{tmp_path}", "experts.up_blocks", (3, 10, 160)):
        assert all(equal(tensor, reference(groups())) for tensor in found)


def test_large_matrices_pass_in_tiles(tmp_path: Path) -> None:
    """What is under way stays within its bound, and what the tiles make is the whole."""
    torch.manual_seed(3)
    tensors = {
        "w.weight": torch.randn(2100, 1900).to(torch.float8_e4m3fn),
        "w.weight_scale_inv": torch.rand(17, 15),
    }
    publish(tmp_path, tensors)
    transfer = TransferConfig(max_inflight_bytes=10 * 2**20, part_size_bytes=5 * 2**20)
    found = load(f"file://{tmp_path}", {"w.weight": torch.zeros(2100, 1900)}, transfer=transfer)["w.weight"]
    scales = tensors["w.weight_scale_inv"].repeat_interleave(128, 0)[:2100].repeat_interleave(128, 1)[:, :1900]
    assert equal(found, tensors["w.weight"].float() * scales)


def test_tiles_are_a_partition() -> None:
    """Every element is in exactly one tile, and no tile is too long."""
    seen = torch.zeros(7, 5, 11, dtype=torch.int32)
    for tile in tiles(Box((1, 0, 2), (6, 5, 9)), 13):
        part = seen
        for dim, (start, size) in enumerate(zip(tile.offsets, tile.sizes, strict=True)):
            part = part.narrow(dim, start, size)
        assert part.numel() <= 13
        part += 1
    assert seen.sum() == 6 * 5 * 9
    assert seen.max() == 1


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Another block size than the model's is an error that says so, not other numbers."""
    publish(tmp_path, matrices())
    with pytest.raises(CheckpointException) as caught:
        load(f"file://{tmp_path}", {"layer.weight": torch.zeros(SHAPE)}, block_size=64)
    assert isinstance(caught.value.failures[0][0], UnsupportedFormatError)
    assert "block_size" in str(caught.value.failures[0][0])
    with pytest.raises(ConfigError):
        CloudQuantizedHuggingFaceStorageReader("memory://b/p", block_size=0)


def upload(uri: str, directory: Path) -> str:
    store = open_store(uri)
    for path in directory.iterdir():
        store.put(path.name, [memoryview(path.read_bytes())])
    return uri
