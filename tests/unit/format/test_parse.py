from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from dcp_cloud.format.items import load_item
from dcp_cloud.format.parse import TAIL_BYTES, NeedMore, RawLayout, crc32_from_trailer, parse_header
from tests.unit.format.strategies import as_torch_saves, no_checksums, storage_alignment, tensors


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def parsed(item: bytes) -> RawLayout | None:
    """Do what a reader does: a short prefix first, a longer one when asked."""
    length = min(1024, len(item))
    while isinstance(found := parse_header(item[:length], item_nbytes=len(item)), NeedMore):
        assert length < found.nbytes <= len(item)
        length = found.nbytes
    return found


def rebuilt(item: bytes, layout: RawLayout) -> torch.Tensor:
    raw = item[layout.raw_offset : layout.raw_offset + layout.raw_nbytes]
    storage = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    return layout.tensor_over(storage)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert (found.is_conj(), found.is_neg()) == (expected.is_conj(), expected.is_neg())
    assert found.untyped_storage().tolist() == expected.untyped_storage().tolist()


@given(tensors())
def test_parsing_finds_what_torch_stored(tensor: torch.Tensor) -> None:
    """The raw bytes that the parser finds rebuild the tensor that torch.load gives."""
    item = as_torch_saves(tensor)
    layout = parsed(item)
    assert layout is not None
    assert_same(rebuilt(item, layout), torch.load(io.BytesIO(item)))
    assert layout.is_plain == rebuilt(item, layout).is_contiguous()
    raw = item[layout.raw_offset : layout.raw_offset + layout.raw_nbytes]
    assert crc32_from_trailer(item[-TAIL_BYTES:]) == zlib.crc32(raw)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, dtype=torch.complex64).conj(),
        torch._neg_view(torch.randn(3, dtype=torch.complex64).conj()),
        torch._neg_view(torch.randn(3)),
        torch.arange(4).as_strided((2, 2), (1, 1), 1),
        torch.zeros([1] * 64),
        torch.zeros(70_000, dtype=torch.uint8),
    ],
    ids=["conj", "both", "neg", "offset", "64 dimensions", "wide numbers"],
)
def test_unusual_tensors(tensor: torch.Tensor) -> None:
    """Lazy bits, storage offsets and many dimensions are read too, and never taken for plain bytes."""
    item = saved(tensor)
    layout = parsed(item)
    assert layout is not None
    assert_same(rebuilt(item, layout), tensor)
    assert layout.is_plain == (not tensor.is_conj() and not tensor.is_neg() and not tensor.storage_offset())


@pytest.mark.parametrize("alignment", [1, 4096, 65536])
def test_any_alignment(alignment: int) -> None:
    """The place of the raw bytes is read, not assumed."""
    with storage_alignment(alignment):
        item = saved(torch.arange(5.0))
    layout = parsed(item)
    assert layout is not None
    assert layout.raw_offset % alignment == 0
    assert rebuilt(item, layout).tolist() == [0, 1, 2, 3, 4]


def test_items_without_checksums() -> None:
    """An item saved without checksums is readable, and says that it has none."""
    with no_checksums():
        item = saved(torch.arange(5.0))
    assert parsed(item) is not None
    assert crc32_from_trailer(item[-TAIL_BYTES:]) is None


@pytest.mark.parametrize(
    "value",
    [
        torch.nn.Parameter(torch.zeros(2)),
        torch.eye(2).to_sparse(),
        {"a": torch.zeros(2)},
        [torch.zeros(2), torch.ones(2)],
        torch.zeros(2, device="meta"),
        torch.zeros(1).expand(5),
        3.5,
    ],
    ids=["parameter", "sparse", "dict", "list", "meta", "expanded", "number"],
)
def test_everything_else_is_left_to_torch(value: object) -> None:
    """Whatever is not one plain tensor is declined."""
    assert parsed(saved(value)) is None


@given(st.binary(max_size=2000))
def test_noise_is_declined(data: bytes) -> None:
    """Arbitrary bytes are no tensor, and nothing is raised."""
    assert not isinstance(parse_header(data, item_nbytes=len(data)), RawLayout)
    assert crc32_from_trailer(data) is None


@given(st.data())
def test_a_damaged_head_never_leads_outside(data: st.DataObject) -> None:
    """With any byte of the head changed, the layout found still lies within the item and its storage."""
    item = bytearray(saved(torch.arange(24, dtype=torch.int16).reshape(2, 3, 4)))
    for _ in range(data.draw(st.integers(1, 3))):
        item[data.draw(st.integers(0, 703))] = data.draw(st.integers(0, 255))
    layout = parsed(bytes(item))
    if layout is not None:
        assert layout.raw_offset + layout.raw_nbytes <= len(item)
        rebuilt(bytes(item), layout).sum()


def test_a_changed_pickle_is_noticed() -> None:
    """The head's own checksum guards the shape: a pickle that parses but was changed is declined."""
    item = bytearray(saved(torch.zeros(2, 3)))
    at = item.index(b"K\x02K\x03\x86")
    item[at : at + 4] = b"K\x03K\x02"
    assert parsed(bytes(item)) is None


def test_a_changed_value_is_noticed() -> None:
    """A flipped bit in the data no longer fits the checksum in the trailer."""
    item = bytearray(saved(torch.arange(6.0)))
    layout = parsed(bytes(item))
    assert layout is not None
    item[layout.raw_offset + 3] ^= 0x10
    raw = item[layout.raw_offset : layout.raw_offset + layout.raw_nbytes]
    assert crc32_from_trailer(bytes(item[-TAIL_BYTES:])) != zlib.crc32(raw)


def test_an_item_shorter_than_its_tensor_is_declined() -> None:
    """Raw bytes beyond the recorded length of the item are not believed."""
    item = saved(torch.zeros(1000))
    assert parse_header(item[:1024], item_nbytes=1024) is None


def test_beyond_four_gigabytes() -> None:
    """Only the head is needed, however long the tensor is."""
    head = io.BytesIO()
    with no_checksums():
        torch.save(torch.empty(2**32 + 5, dtype=torch.uint8), _Head(head))
    layout = parse_header(head.getvalue(), item_nbytes=2**32 + 2000)
    assert isinstance(layout, RawLayout)
    assert layout.shape == (2**32 + 5,)
    assert layout.raw_nbytes == 2**32 + 5


class _Head:
    """Keeps the small writes that come first."""

    def __init__(self, sink: io.BytesIO) -> None:
        self.sink = sink

    def write(self, data: object) -> int:
        view = memoryview(data)
        if self.sink.tell() < 704 and view.nbytes < 1 << 20:
            self.sink.write(view)
        return view.nbytes

    def flush(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.15 says that it does
@pytest.mark.parametrize(
    "make", [lambda: torch.nn.Parameter(torch.ones(2)), lambda: torch.eye(2).to_sparse()], ids=["parameter", "sparse"]
)
def test_whole_items_load(make: Callable[[], torch.Tensor]) -> None:
    """What the parser declines, torch.load still opens."""
    loaded = load_item(saved(make()), key="k")
    assert torch.equal(loaded.to_dense(), make().detach().to_dense())


@given(st.integers(0, 1500))
def test_a_cut_off_item_is_corrupt(length: int) -> None:
    """A truncated item ends in a typed error that names the object."""
    with pytest.raises(CorruptCheckpointError, match="some/key"):
        load_item(saved(torch.zeros(3))[:-1][:length], key="some/key")


@given(st.data())
def test_a_damaged_item_ends_in_a_typed_error(data: st.DataObject) -> None:
    """With bytes changed anywhere, an item loads or fails with an error of this package."""
    item = bytearray(saved(torch.arange(6.0)))
    for _ in range(data.draw(st.integers(1, 4))):
        item[data.draw(st.integers(0, len(item) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        load_item(bytes(item), key="k")


class Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


def test_code_in_an_item_is_refused() -> None:
    """A pickle that calls something is refused by name and not run."""
    with pytest.raises(UnsafeCheckpointError, match=r"builtins\.eval"):
        load_item(saved(Malice()), key="k")


def test_objects_that_are_no_tensor_are_refused() -> None:
    """Where .metadata promises a tensor, another object is an error."""
    with pytest.raises(CorruptCheckpointError, match="dict, not a tensor"):
        load_item(saved({"a": 1}), key="k")


def test_an_item_that_swells_is_refused() -> None:
    """A compressed archive cannot make the reader allocate more than was downloaded."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1, protocol=2))
        archive.writestr("archive/data/0", bytes(50 << 20))
    assert len(buffer.getvalue()) < 1 << 20
    with pytest.raises(CorruptCheckpointError, match="claim to hold"):
        load_item(buffer.getvalue(), key="k")
