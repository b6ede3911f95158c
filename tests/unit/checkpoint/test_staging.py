"""Tensors that cannot be sent from where they are: copied block by block, in the order torch would store them."""

from __future__ import annotations

import io
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dcp_cloud.checkpoint.staging import gather, open_tensor
from dcp_cloud.format.layout import BLOCK_BYTES
from dcp_cloud.transfer.span import crc32_of


def saved(tensor: torch.Tensor) -> bytes:
    """What torch's own writer stores for a tensor on an accelerator."""
    stream = io.BytesIO()
    torch.save(tensor.detach().clone(), stream)
    return stream.getvalue()


def staged(tensor: torch.Tensor) -> bytes:
    source = open_tensor(tensor, is_on_host=lambda _tensor: False)
    assert source is not None
    assert source.is_staged
    blocks = source.blocks()
    body = b"".join(bytes(block.view()) for block in blocks)
    return source.record.header + body + source.record.trailer(crc32_of(blocks))


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "plain": lambda: torch.randn(1500, 1001),
    "transposed": lambda: torch.randn(1500, 1001).t(),
    "columns": lambda: torch.randn(1500, 2002)[:, 500:1501],
    "every other": lambda: torch.randn(3_000_000)[::2],
    "wide rows": lambda: torch.randn(3, 4_000_001)[:, :2_000_001],
    "channels last": lambda: torch.randn(4, 8, 200, 201).contiguous(memory_format=torch.channels_last),
    "expanded": lambda: torch.randn(2000).expand(1000, 2000),
    "half": lambda: torch.randn(1500, 1001).to(torch.bfloat16)[:, 3:],
    "scalar": lambda: torch.tensor(2.0),
    "empty": lambda: torch.empty(0, 3),
    "parameter": lambda: torch.nn.Parameter(torch.randn(1200, 1001)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_staged_is_what_torch_would_save(layout: str) -> None:
    """Header, blocks and trailer of a staged tensor are the bytes of torch.save of its copy."""
    tensor = LAYOUTS[layout]()
    assert staged(tensor) == saved(tensor)


def test_the_memory_of_host_tensors_is_sent_as_it_is() -> None:
    """A tensor that fills its storage and a row-major view are not copied."""
    base = torch.zeros(3000, 1000)
    for tensor in (base, base.t(), base[10:20]):
        source = open_tensor(tensor)
        assert source is not None
        assert not source.is_staged
        tensor.fill_(1)
        assert source.load(0, 4) == torch.ones(1).numpy().tobytes()
        tensor.fill_(0)


def test_a_block_is_copied_once_and_let_go_when_it_is_sent() -> None:
    """However often a block's bytes are asked for, the tensor is read once; a sent block keeps only its checksum."""
    source = open_tensor(torch.randn(2 * BLOCK_BYTES // 4), is_on_host=lambda _tensor: False)
    assert source is not None
    block = source.blocks()[0]
    first = block.view()
    block.crc32()
    assert block.view().obj is first.obj
    block.forget()
    with pytest.raises(AssertionError):
        block.view()


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    data=st.data(),
)
def test_any_stretch_of_any_layout_is_gathered(shape: list[int], data: st.DataObject) -> None:
    """Elements from start to stop in row-major order, whatever the strides."""
    base = torch.arange(10 ** len(shape)).reshape([10] * len(shape))
    steps = [data.draw(st.integers(1, 2)) for _ in shape]
    tensor = base[tuple(slice(0, size * step, step) for size, step in zip(shape, steps, strict=True))]
    tensor = tensor.permute(data.draw(st.permutations(range(len(shape)))))
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    out = torch.zeros(stop - start, dtype=tensor.dtype)
    gather(tensor, start, stop, out)
    assert torch.equal(out, tensor.reshape(-1)[start:stop])
