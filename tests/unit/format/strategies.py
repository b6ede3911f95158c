"""Arbitrary tensors: every dtype that torch saves, any shape, any order of dimensions, whole or part of a storage.

And the settings of ``torch.save`` that change what it writes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pytest
import torch
from hypothesis import strategies as st

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw a CPU tensor with arbitrary bytes."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    numel = torch.Size(shape).numel()
    seed = draw(st.integers(0, 2**32 - 1))
    raw = torch.randint(
        0, 2 if dtype == torch.bool else 256, (numel * dtype.itemsize,), generator=torch.Generator().manual_seed(seed)
    )
    tensor = raw.to(torch.uint8).view(dtype).reshape(shape)
    if shape:
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
        kind = draw(st.sampled_from(["whole", "slice", "step", "expand"]))
        if kind == "slice":
            tensor = tensor[1:]
        elif kind == "step":
            tensor = tensor[..., ::2]
        elif kind == "expand":
            tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor


def as_torch_saves(tensor: torch.Tensor) -> bytes:
    """Do what torch's FileSystemWriter does with a tensor (``_SerialCpuLoader`` and ``_write_item``)."""
    tensor = tensor.detach().cpu()
    if tensor.untyped_storage().size() != tensor.nbytes:
        tensor = tensor.clone()
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def storage_alignment(nbytes: int) -> Iterator[None]:
    """Let torch.save align storages to this."""
    config = pytest.importorskip("torch.utils.serialization.config", reason="torch 2.6 has one alignment only")
    with config.patch("save.storage_alignment", nbytes):
        yield


@contextlib.contextmanager
def no_checksums() -> Iterator[None]:
    """Let torch.save store no checksums, and not read the data for them."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
