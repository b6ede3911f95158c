"""A box of a stored tensor lands in a target: the right elements, from no more bytes than they need."""

from __future__ import annotations

import math
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.checkpoint import landing
from dcp_cloud.checkpoint.landing import LandingConfig, StoredTensor, plan_landing
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.format.layout import PAGE_BYTES
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing import RecordingStore
from dcp_cloud.transfer.download import Downloader, Target

KEY = "object"
BLOCK = 64  # instead of 256 KiB, so that small tensors have many
REAL = (torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def values(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor whose neighbours differ and whose values every dtype holds exactly."""
    numbers = torch.arange(math.prod(shape)) * 7 % (2 if dtype == torch.bool else 13)
    return numbers.to(dtype).reshape(tuple(shape))


def storage(tensor: torch.Tensor) -> bytes:
    """Give all bytes of a tensor's storage."""
    return bytes(tensor.untyped_storage())


def stored_tensor(tensor: torch.Tensor, start: int, block: int) -> StoredTensor:
    """Describe a tensor as the writer would: strides only where they matter, checksums of blocks and whole."""
    data = storage(tensor)
    blocks = tuple(zlib.crc32(data[at : at + block]) for at in range(0, len(data), block))
    return StoredTensor(
        key=KEY,
        start=start,
        nbytes=len(data),
        shape=tuple(tensor.shape),
        strides=None if tensor.is_contiguous() else tensor.stride(),
        dtype=tensor.dtype,
        crc32=zlib.crc32(data),
        page_crc32=blocks if len(blocks) > 1 else (),
        label="w",
        page_bytes=block,
    )


def store_of(data: bytes) -> RecordingStore:
    store = MemoryStore(uuid.uuid4().hex)
    store.put(KEY, [memoryview(data)])
    return RecordingStore(store)


def fetched(store: RecordingStore) -> int:
    return sum(call.size_bytes for call in store.calls if call.verb == "get_range")


@st.composite
def stored(draw: st.DrawFn) -> torch.Tensor:
    """Draw a tensor as it may be stored: row-major, permuted, with gaps, or with elements that overlap."""
    dtype = draw(st.sampled_from(REAL + COMPLEX))
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    tensor = values(shape, dtype)
    kind = draw(st.sampled_from(["plain", "permuted", "gaps", "expanded"])) if shape else "plain"
    if kind == "permuted":
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    elif kind == "gaps":
        tensor = tensor[..., ::2]
    elif kind == "expanded":
        tensor = tensor[..., :1].expand(shape)
    return tensor.clone() if tensor.is_contiguous() else tensor


@st.composite
def targets(draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw a place for a box: contiguous or of any other layout, of the stored dtype or another one."""
    others = COMPLEX if dtype.is_complex else (*REAL, torch.float32, torch.int64)
    chosen = draw(st.one_of(st.just(dtype), st.sampled_from(others)))
    kind = draw(st.sampled_from(["plain", "permuted", "part", "leaf"])) if shape else "plain"
    if kind == "permuted":
        order = draw(st.permutations(range(len(shape))))
        return torch.zeros([shape[dim] for dim in order], dtype=chosen).permute(
            [order.index(dim) for dim in range(len(shape))]
        )
    if kind == "part":
        return torch.zeros([size + 2 for size in shape], dtype=chosen)[tuple(slice(1, -1) for _ in shape)]
    can_require_grad = kind == "leaf" and (chosen.is_floating_point or chosen.is_complex)
    return torch.zeros(shape, dtype=chosen, requires_grad=can_require_grad).detach()


@given(data=st.data(), tensor=stored())
def test_a_box_holds_what_indexing_gives(data: st.DataObject, tensor: torch.Tensor) -> None:
    """Whatever the shapes, layouts, dtypes and lengths: the target equals the indexed tensor, each byte is verified."""
    lows = [data.draw(st.integers(0, size - 1)) for size in tensor.shape]
    box = [(low, data.draw(st.integers(1, size - low))) for low, size in zip(lows, tensor.shape, strict=True)]
    offsets = [low for low, _ in box]
    expected = tensor[tuple(slice(low, low + length) for low, length in box)]
    target = data.draw(targets(tensor.dtype, tuple(length for _, length in box)))
    start, gap = data.draw(st.integers(0, 70)), data.draw(st.sampled_from([0, 16, 100]))
    record = stored_tensor(tensor, start, BLOCK)
    config = LandingConfig(tile_bytes=BLOCK * data.draw(st.integers(1, 3)), max_gap_bytes=gap)
    store = store_of(b"\xaa" * start + storage(tensor) + b"\xbb" * 40)
    transfer = TransferConfig(part_size_bytes=data.draw(st.sampled_from([50, 1000])), max_gap_bytes=gap)

    with patch.object(landing, "_MIN_RUN_BYTES", 8), patch.object(landing, "_MIN_RUN_PAGES", 1):
        planned = plan_landing(record, offsets, target, config)
        Downloader(store, transfer).run(planned)

    assert torch.equal(target, expected.to(target.dtype))
    wanted = expected.numel() * tensor.dtype.itemsize
    is_row_major = record.strides is None
    is_slice = offsets[1:] == [0] * (tensor.dim() - 1) and expected.shape[1:] == tensor.shape[1:]
    assert fetched(store) <= record.nbytes
    if is_row_major and is_slice:
        assert fetched(store) <= wanted + 2 * BLOCK
    assert all(sum(check.stop - check.start for check in piece.checks) == piece.nbytes for piece in planned)
    assert all(target.start >= start and target.start + target.nbytes <= start + record.nbytes for target in planned)


def plan(
    tensor_shape: tuple[int, ...],
    offsets: Sequence[int],
    target: torch.Tensor,
    record_changes: Mapping[str, Any] = MappingProxyType({}),
    **config: int,
) -> list[Target]:
    """Plan the reading of a box of a float32 tensor that nobody has to allocate."""
    nbytes = math.prod(tensor_shape) * 4
    record = StoredTensor(
        key=KEY, start=0, nbytes=nbytes, shape=tensor_shape, strides=None, dtype=torch.float32, crc32=None,
        page_crc32=tuple(range(-(-nbytes // PAGE_BYTES))), label="w",
    )  # fmt: skip
    settings = {"tile_bytes": 16 << 20, "max_gap_bytes": 512 << 10} | config
    return plan_landing(replace(record, **record_changes), offsets, target, LandingConfig(**settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_slice_of_rows_needs_no_bytes_of_the_others(dtype: torch.dtype) -> None:
    """A slice along the first dimension, converted or not, asks for its own bytes, cut into tiles."""
    target = torch.empty(5000, 1024, dtype=dtype)
    planned = plan((100_000, 1024), (333, 0), target)
    assert sum(piece.nbytes for piece in planned) <= 5000 * 1024 * 4 + 2 * PAGE_BYTES
    assert all(piece.nbytes <= (16 << 20) + 2 * PAGE_BYTES for piece in planned)


def test_all_pages_of_a_slice_are_verified() -> None:
    """Every page that a slice touches has its check; those cut at its ends are read whole, into temporaries."""
    rows = PAGE_BYTES // 4096
    planned = plan((40 * rows, 1024), (rows // 2, 0), torch.empty(10 * rows, 1024))
    found = [
        (target.start + check.start, target.start + check.stop, check.crc32)
        for target in planned
        for check in target.checks
    ]
    assert found == [(n * PAGE_BYTES, (n + 1) * PAGE_BYTES, n) for n in range(11)]
    assert [target.memory is None for target in planned] == [True, False, True]


@pytest.mark.parametrize("target", [torch.empty(4096, 4096).t(), torch.empty(4096, 4096, dtype=torch.float64)])
def test_a_whole_tensor_is_verified_whole_even_if_it_is_converted(target: torch.Tensor) -> None:
    """Tiles of a conversion are widened to blocks, so that each block of the tensor is checked."""
    planned = plan((4096, 4096), (0, 0), target)
    checked = {check.crc32 for piece in planned for check in piece.checks}
    assert checked == set(range(4096 * 4096 * 4 // PAGE_BYTES))
    assert max(piece.nbytes for piece in planned) <= (16 << 20) + 2 * PAGE_BYTES


def test_the_number_of_targets_does_not_grow_with_the_load() -> None:
    """Rows of a column slice are targets of their own only while there are few of them for the bytes of the load."""
    target = torch.empty(100_000, 1024)
    unknown = {"page_crc32": ()}
    assert len(plan((100_000, 2048), (0, 1024), target, unknown)) == 100_000
    assert len(plan((100_000, 2048), (0, 1024), target, unknown, load_bytes=4096 * 100_000)) < 200
    assert len(plan((100_000, 2048), (0, 1024), target)) < 200


def test_a_permuted_tensor_is_read_in_slices_too() -> None:
    """Of a stored transposed tensor only the wanted columns are read, straight into a target of the same layout."""
    record = StoredTensor(
        key=KEY, start=0, nbytes=4 << 30, shape=(1024, 1 << 20), strides=(1, 1024), dtype=torch.float32, crc32=1,
        page_crc32=(0,) * ((4 << 30) // PAGE_BYTES), label="w",
    )  # fmt: skip
    target = torch.empty(1000, 1024).t()
    planned = plan_landing(record, (0, 5000), target, LandingConfig(tile_bytes=16 << 20, max_gap_bytes=0))
    assert target.nbytes <= sum(piece.nbytes for piece in planned) <= target.nbytes + 2 * PAGE_BYTES
    assert sum(piece.memory is None for piece in planned) <= 2


@pytest.mark.parametrize(
    ("record", "offsets"),
    [
        ({"nbytes": 396}, (0, 0)),
        ({"nbytes": 402}, (0, 0)),
        ({"nbytes": 0}, (0, 0)),
        ({"shape": (10,)}, (0, 0)),
        ({"shape": (4, 10)}, (0, 0)),
        ({"shape": (-5, 10)}, (0, 0)),
        ({"shape": (0, 10)}, (0, 0)),
        ({"strides": (10,)}, (0, 0)),
        ({"strides": (11, 1)}, (0, 0)),
        ({"strides": (2**62, 1)}, (0, 0)),
        ({}, (6, 0)),
        ({}, (-1, 0)),
        ({}, (0,)),
    ],
)
def test_a_record_that_contradicts_itself_is_corrupt(record: dict, offsets: tuple[int, ...]) -> None:
    """A box outside of the tensor, or a tensor outside of its bytes, is refused before anything is read."""
    good = {"nbytes": 400, "shape": (10, 10), "strides": None}
    bad = StoredTensor(key=KEY, start=0, dtype=torch.float32, crc32=None, page_crc32=(), label="'w'", **(good | record))
    with pytest.raises(CorruptCheckpointError, match="'w'") as caught:
        plan_landing(bad, offsets, torch.empty(5, 10), LandingConfig(tile_bytes=PAGE_BYTES, max_gap_bytes=0))
    assert caught.value.key == KEY
    assert caught.value.hint


def test_an_inference_tensor_can_be_filled_from_any_thread() -> None:
    """A target made in inference mode is filled by worker threads, which are not in that mode."""
    with torch.inference_mode():
        target = torch.zeros(4, 4, dtype=torch.float64)
    source = values((4, 4), torch.float32)
    store = store_of(storage(source))
    planned = plan_landing(
        stored_tensor(source, 0, PAGE_BYTES), (0, 0), target, LandingConfig(tile_bytes=PAGE_BYTES, max_gap_bytes=0)
    )
    Downloader(store, TransferConfig()).run(planned)
    assert torch.equal(target, source.double())
