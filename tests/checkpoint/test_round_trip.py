"""What was saved is what is loaded: on one process, through every store."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudLoadPlanner, CloudStorageReader, CloudStorageWriter
from tests.checkpoint.conftest import every_store
from tests.checkpoint.states import ALL_DTYPES, equal, odd_tensors, random_bytes, training_state, zeros_like

Place = Callable[..., str]


def save(state: dict, uri: str, **options: object) -> CloudStorageWriter:
    writer = CloudStorageWriter(uri, **options)
    dcp.save(state, storage_writer=writer)
    return writer


def load(state: dict, uri: str, **options: object) -> CloudStorageReader:
    reader = CloudStorageReader(uri, **options)
    dcp.load(state, storage_reader=reader)
    return reader


@every_store
def test_a_training_state_comes_back_equal(place: Place) -> None:
    """Model, optimizer, scheduler, random state and position come back bit by bit, on every store."""
    saved, uri = training_state(1), place()
    save(saved, uri)
    loaded = training_state(2)
    load(loaded, uri)
    assert equal(saved, loaded)


@every_store
def test_parts_and_ranges_are_joined_right(place: Place) -> None:
    """A tensor of several parts and blocks comes back equal, and its upload is a multipart one."""
    saved, uri = {"w": torch.randn(4_000_000), "b": torch.randn(7)}, place(part_size="5MiB")
    writer = save(saved, uri)
    loaded = zeros_like(saved)
    load(loaded, uri)
    assert equal(saved, loaded)
    assert writer.last_save is not None
    assert writer.last_save.requests > 4


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_comes_back(place: Place, dtype: torch.dtype) -> None:
    """Arbitrary bits of every dtype survive, in tensors below and above the size of a block."""
    saved = {"small": random_bytes((3, 5), dtype), "large": random_bytes((600, 3001), dtype)}
    uri = place()
    save(saved, uri)
    loaded = zeros_like(saved)
    load(loaded, uri)
    assert equal(saved, loaded)


@pytest.mark.parametrize("place", ["memory", "ceph"], indirect=True)
def test_every_layout_comes_back(place: Place) -> None:
    """Views, expanded, transposed, channels-last, conjugated, empty and scalar tensors come back by value."""
    saved, uri = odd_tensors(), place()
    save(saved, uri)
    loaded = zeros_like(saved)
    load(loaded, uri)
    assert equal(saved, loaded)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_targets_of_any_kind_are_filled(place: Place) -> None:
    """Targets may be transposed, strided, of another dtype, channels-last or leaves that require gradients."""
    value, uri = torch.randn(1200, 1100), place()
    image = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    save({"w": value, "i": image}, uri)
    for target in (
        torch.zeros(1100, 1200).t(),
        torch.zeros(1200, 2200)[:, ::2],
        torch.zeros(1200, 1100, dtype=torch.float64),
        torch.zeros(1200, 1100, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.zeros(1200, 1100)),
    ):
        loaded = {"w": target, "i": torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)}
        load(loaded, uri)
        assert torch.equal(target.detach(), value.to(target.dtype))
        assert torch.equal(loaded["i"], image)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_parts_of_a_larger_tensor_come_back(place: Place) -> None:
    """A plain tensor that torch is told to be several parts of a larger one is stored and filled part by part."""
    pytest.importorskip("torch.distributed.checkpoint.protocol", reason="CheckpointableTensor came with torch 2.14")

    def halves_swapped(values: torch.Tensor) -> torch.Tensor:
        values.global_shape, values.local_sizes = (8, 3), ((4, 3), (4, 3))
        values.global_offsets, values.local_offsets = ((4, 0), (0, 0)), ((0, 0), (4, 0))
        return values

    whole, uri = torch.arange(24.0).reshape(8, 3), place()
    save({"w": halves_swapped(torch.cat([whole[4:], whole[:4]]))}, uri)
    plain, parts = torch.zeros(8, 3), halves_swapped(torch.zeros(8, 3))
    for target in (plain, parts):
        dcp.load({"w": target}, storage_reader=CloudStorageReader(uri), planner=CloudLoadPlanner())
    assert torch.equal(plain, whole)
    assert torch.equal(parts, torch.cat([whole[4:], whole[:4]]))


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_writer_serves_several_saves(place: Place) -> None:
    """One writer and one reader object serve a whole run, moved by reset, and saves never share an object."""
    first, second = place(), place()
    writer, reader = CloudStorageWriter(first), CloudStorageReader(first)
    states = [{"w": torch.full((10,), float(step))} for step in range(3)]
    dcp.save(states[0], storage_writer=writer)
    dcp.save(states[1], storage_writer=writer, checkpoint_id=second)
    dcp.save(states[2], storage_writer=writer)
    loaded = {"w": torch.zeros(10)}
    dcp.load(loaded, storage_reader=reader)
    assert equal(loaded, states[0])
    dcp.load(loaded, storage_reader=reader, checkpoint_id=second)
    assert equal(loaded, states[2])


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_empty_state_dicts_are_checkpoints_too(place: Place) -> None:
    """A state dict without entries is committed and loaded."""
    uri = place()
    save({}, uri)
    load({}, uri)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_part_of_the_names_can_be_loaded(place: Place) -> None:
    """Loading some of the saved names reads no others."""
    saved, uri = {"a": torch.randn(300_000), "b": torch.randn(300_000)}, place()
    save(saved, uri)
    loaded = {"b": torch.zeros(300_000)}
    reader = load(loaded, uri)
    assert equal(loaded["b"], saved["b"])
    assert reader.last_load is not None
    assert reader.last_load.size_bytes == 1_200_000
