"""Encoding the items of a save plan: what is stored, what is held meanwhile, what is refused."""

from __future__ import annotations

import gc
import io
import math
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import _create_write_items

from dcp_cloud.checkpoint.encode import EncodedItem, ItemEncoder, estimate_bytes
from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import CheckpointError, UnsupportedFormatError
from dcp_cloud.format.layout import PAGE_BYTES, StoredItem
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.upload import Uploader
from tests.unit.checkpoint.place import new_store
from tests.unit.format.strategies import as_torch_saves, tensors

CONFIG = TransferConfig(part_size_bytes=MIB, max_inflight_bytes=8 * MIB)


class Given(SavePlanner):
    """A planner that gives whatever a test puts into it; the encoder asks for nothing else."""

    set_up_planner = create_local_plan = create_global_plan = finish_plan = None  # type: ignore[assignment]

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def resolve_data(self, write_item: WriteItem) -> Any:
        value = self.data[write_item.index.fqn]
        return value() if callable(value) else value


def items_of(data: dict[str, Any]) -> list[WriteItem]:
    """Plan the items of tensors and bytes as torch does."""
    made = []
    for fqn, value in data.items():
        if isinstance(value, torch.Tensor):
            made.extend(_create_write_items(fqn, value))
        else:
            made.append(WriteItem(MetadataIndex(fqn), WriteItemType.BYTE_IO))
    return made


def encode(
    data: dict[str, Any],
    *,
    items: Sequence[WriteItem] | None = None,
    extensions: Sequence[Any] = (),
    store: ObjectStore | None = None,
) -> tuple[list[StoredItem], int, int]:
    """Store items in one object; give their records, and what the budget holds after the save and held at most."""
    with Uploader(store or new_store(), CONFIG) as uploader:
        encoder = ItemEncoder(Given(data), extensions, uploader.budget)
        upload = uploader.begin("object", expected_bytes=1 << 30)
        encoded: list[EncodedItem] = [encoder.append(item, upload) for item in items or items_of(data)]
        upload.end()
        uploader.finish()
        budget = uploader.budget
    assert all(found.size_bytes == found.describe().size_bytes for found in encoded)
    return [found.describe() for found in encoded], budget.held_bytes, budget.peak_bytes


@given(tensor=tensors())
def test_any_tensor_is_stored_as_torch_saves_it(tensor: torch.Tensor) -> None:
    """The bytes of an item are torch's, its length is at most the estimate, and its record finds the values."""
    store = new_store()
    item = items_of({"w": tensor})[0]
    (stored,), held_bytes, _ = encode({"w": tensor}, items=[item], store=store)
    data = store.get("object", max_bytes=1 << 30).data
    assert data == as_torch_saves(tensor)
    assert stored.size_bytes == len(data) <= estimate_bytes(item)
    assert held_bytes == 0
    if stored.raw is not None:
        raw = torch.frombuffer(bytearray(data)[stored.raw.offset :][: stored.raw.size_bytes or 1], dtype=torch.uint8)
        strides = stored.raw.strides or torch.empty(tensor.shape, device="meta").stride()
        if tensor.numel():
            found = torch.as_strided(raw.view(tensor.dtype), tensor.shape, strides)
            assert bytes(found.contiguous().untyped_storage()) == bytes(tensor.clone(memory_format=torch.contiguous_format).untyped_storage())  # fmt: skip # noqa: E501


@pytest.mark.parametrize("numel", [20_000, 3_000_000])
def test_no_tensor_is_held_after_it_was_sent(numel: int) -> None:
    """Records know checksums, not memory: copies that the writer made are gone before the save ends."""
    alive: list[weakref.ref[Any]] = []

    def make() -> torch.Tensor:
        tensor = torch.randn(numel)
        alive.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    template = torch.empty(numel)
    with Uploader(new_store(), CONFIG) as uploader:
        encoder = ItemEncoder(Given({"w": make}), (), uploader.budget)
        upload = uploader.begin("object", expected_bytes=1 << 30)
        encoded = [encoder.append(item, upload) for item in items_of({"w": template})]
        upload.end()
        uploader.finish()
        gc.collect()
        assert [reference() for reference in alive] == [None]
        raw = encoded[0].describe().raw
    assert raw is not None
    assert len(raw.page_crc32) == (math.ceil(numel * 4 / PAGE_BYTES) if numel * 4 > PAGE_BYTES else 0)


def _cut(numel: int) -> torch.Tensor:
    return torch.randn(numel, 2)[:, 0]


def test_scattered_tensors_are_copied_when_their_parts_leave() -> None:
    """Copies of tensors that are not one run of memory are in the budget while their parts are under way."""
    data = {f"w{n}": _cut(size) for n, size in enumerate((MIB // 4, 4 * MIB, MIB // 4))}
    stored, held_bytes, peak_bytes = encode(data)
    assert len(stored) == 3
    assert held_bytes == 0
    assert 4 * MIB <= peak_bytes <= CONFIG.max_inflight_bytes


def test_what_is_made_in_memory_is_in_the_budget() -> None:
    """Transformed tensors, and byte items, are held in the budget while they are under way and no longer."""
    from torch.distributed.checkpoint._extension import ZStandard

    data = {"w": torch.randn(MIB), "b": io.BytesIO(bytes(3 * MIB))}
    stored, held_bytes, peak_bytes = encode(data, extensions=[ZStandard()])
    assert held_bytes == 0
    assert peak_bytes >= 8 * MIB
    assert all(found.transforms and found.crc32 is not None and found.raw is None for found in stored)


class Tagged(torch.Tensor):
    """A subclass that means more than its values, for all this package knows."""


def test_a_tensor_subclass_goes_through_torch_save() -> None:
    """What this package cannot write by itself is written by torch.save, verifiable as a whole."""
    tensor = torch.randn(50, 3).as_subclass(Tagged)
    store = new_store()
    (stored,), held_bytes, _ = encode({"w": tensor}, store=store)
    assert store.get("object", max_bytes=1 << 20).data == as_torch_saves(tensor)
    assert stored.raw is None
    assert stored.crc32 is not None
    assert held_bytes == 0


@pytest.mark.parametrize(
    ("given_tensor", "is_recorded"),
    [
        (torch.ones(4, 4), True),
        (torch.nn.Parameter(torch.ones(4, 4)), True),
        (torch.ones(4, 4, requires_grad=True) * 2, True),
        (torch.ones(4, 4, dtype=torch.bfloat16), False),
        (torch.ones(16), False),
        (torch.ones(4, 4, dtype=torch.int32), False),
    ],
)
def test_only_what_was_planned_is_read_without_its_header(given_tensor: torch.Tensor, *, is_recorded: bool) -> None:
    """A tensor of another dtype or shape than the plan announced gets no raw record: its header is the truth."""
    items = items_of({"w": torch.empty(4, 4)})
    (stored,), _, _ = encode({"w": given_tensor}, items=items)
    assert (stored.raw is not None) == is_recorded


@pytest.mark.parametrize(
    ("planned", "given_value"),
    [(torch.empty(3), io.BytesIO(b"x")), (torch.empty(3), [1.0]), (None, torch.empty(3)), (None, b"bytes")],
)
def test_something_else_than_planned_is_a_typed_error(planned: Any, given_value: Any) -> None:
    """A planner that gives bytes for a tensor or the reverse is named, with the item."""
    with pytest.raises(CheckpointError, match=r"'w'.*\. Look at the resolve_data"):
        encode({"w": given_value}, items=items_of({"w": planned}))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "make",
    [lambda: torch.eye(3).to_sparse(), lambda: torch.eye(3).to_sparse_csr(), lambda: torch.empty(3, 3, device="meta")],
    ids=["coo", "csr", "meta"],
)
def test_tensors_that_nobody_could_load_are_refused(make: Any) -> None:
    """Sparse tensors and tensors without data are typed errors that name the item and the way out."""
    with pytest.raises(UnsupportedFormatError, match="'w' cannot be stored") as caught:
        encode({"w": make()}, items=items_of({"w": torch.empty(3, 3)}))
    assert caught.value.hint
