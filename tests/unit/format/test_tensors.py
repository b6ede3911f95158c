from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch._subclasses.fake_tensor import FakeTensorMode

from dcp_cloud.errors import ConfigError, UnsupportedFormatError
from dcp_cloud.format.tensors import plan_record, prepare_tensor, tensor_bytes
from tests.unit.format.strategies import DTYPES, tensors


class Labelled(torch.Tensor):
    """A subclass, as users make them."""


def test_memory_of_the_caller_is_not_copied() -> None:
    """A CPU tensor that fills its storage is stored from its own memory."""
    for tensor in (
        torch.zeros(2, 3).t(),
        torch.nn.Parameter(torch.zeros(4)),
        torch.zeros(2, dtype=torch.cfloat).conj(),
    ):
        prepared = prepare_tensor(tensor)
        assert prepared is not None
        assert not prepared.owns_copy
        prepared.memory[0] = 1
        assert tensor.untyped_storage()[0] == 1


def test_a_run_of_a_larger_storage_is_not_copied() -> None:
    """A row-major view, such as a shard of a flat parameter, is stored from its place in the larger storage."""
    whole = torch.arange(6.0)
    prepared = prepare_tensor(whole[2:4])
    assert prepared is not None
    assert not prepared.owns_copy
    assert bytes(prepared.memory) == bytes(tensor_bytes(torch.tensor([2.0, 3.0])))


@pytest.mark.parametrize(
    "view",
    [torch.arange(6.0)[::2], torch.zeros(1).expand(3), torch.zeros(4, 4)[:, :2].t()],
    ids=["step", "expand", "t"],
)
def test_scattered_views_are_copied(view: torch.Tensor) -> None:
    """A view that is not one run of bytes is cloned, so that only its own values are stored, and says so."""
    prepared = prepare_tensor(view)
    assert prepared is not None
    assert prepared.owns_copy
    assert prepared.memory.nbytes == view.nbytes


@pytest.mark.parametrize("start", [0, 1])
def test_a_freed_storage_is_refused(start: int) -> None:
    """A tensor whose storage was freed under it is an error, not a crash and not an empty object."""
    tensor = torch.arange(6.0)[start:]
    tensor.untyped_storage().resize_(0)
    for use in (prepare_tensor, tensor_bytes):
        with pytest.raises(ConfigError, match="no memory"):
            use(tensor)


def test_the_memory_outlives_the_tensor() -> None:
    """The bytes stay valid for as long as somebody holds them."""
    prepared = prepare_tensor(torch.full((1000,), 7, dtype=torch.uint8))
    assert prepared is not None
    gc.collect()
    assert bytes(prepared.memory) == b"\x07" * 1000


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2).as_subclass(Labelled),
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.eye(2).to_sparse_csr(),
        lambda: torch.zeros(2, device="meta"),
        lambda: FakeTensorMode().from_tensor(torch.zeros(2)),
        lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
        lambda: torch.zeros(2, dtype=torch.uint8).view(torch.quint8),
    ],
    ids=["subclass", "sparse", "csr", "meta", "fake", "nested", "quantised"],
)
def test_other_tensors_are_left_to_torch(make: Callable[[], torch.Tensor]) -> None:
    """What is no plain strided tensor is declined, in the plan already."""
    assert prepare_tensor(make()) is None
    assert plan_record(make()) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_landing_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bytes written to the landing memory are the tensor's values, for every dtype and shape."""
    tensor = torch.zeros(shape).to(dtype)
    memory = tensor_bytes(tensor)
    assert memory.nbytes == tensor.nbytes
    assert not memory.readonly
    memory[:] = b"\x01" * memory.nbytes
    assert tensor.untyped_storage().tolist() == [1] * tensor.nbytes


def test_landing_memory_of_a_narrowed_leaf() -> None:
    """A row range of a parameter is one run of bytes at its place in the storage."""
    parameter = torch.nn.Parameter(torch.zeros(4, 2))
    memory = tensor_bytes(parameter.detach()[1:3])
    memory[:] = bytes(tensor_bytes(torch.ones(2, 2)))
    assert parameter.sum(dim=1).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3).t(),
        torch.zeros(4)[::2],
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.cfloat).conj(),
    ],
    ids=["transposed", "stepped", "meta", "conj"],
)
def test_no_landing_in_scattered_memory(tensor: torch.Tensor) -> None:
    """A tensor whose values are not one run of bytes is refused."""
    with pytest.raises(UnsupportedFormatError):
        tensor_bytes(tensor)


@given(tensors())
def test_landing_bytes_are_the_values_in_order(tensor: torch.Tensor) -> None:
    """The landing memory of any contiguous tensor reads as its values in row-major order."""
    contiguous = tensor.contiguous()
    assert list(tensor_bytes(contiguous)) == contiguous.clone().untyped_storage().tolist()
