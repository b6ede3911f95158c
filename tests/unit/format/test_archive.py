from __future__ import annotations

import importlib.util
import io
import zipfile
import zlib

import pytest
import torch
from hypothesis import given

from dcp_cloud.format import archive
from dcp_cloud.format.archive import TensorRecord, is_row_major, tensor_record
from dcp_cloud.format.tensors import plan_record, prepare_tensor
from tests.unit.format.strategies import DTYPES, as_torch_saves, no_checksums, storage_alignment, tensors


def emit(tensor: torch.Tensor) -> bytes:
    prepared = prepare_tensor(tensor)
    assert prepared is not None
    trailer = prepared.record.trailer(zlib.crc32(prepared.memory))
    assert len(trailer) == prepared.record.trailer_nbytes
    return prepared.record.header + prepared.memory + trailer


@given(tensors())
def test_items_are_what_torch_saves(tensor: torch.Tensor) -> None:
    """Header, memory and trailer together are byte for byte what torch's writer stores."""
    assert emit(tensor) == as_torch_saves(tensor)


@given(tensors())
def test_the_plan_foretells_the_item(tensor: torch.Tensor) -> None:
    """The record planned without reading the tensor is the one that is stored."""
    prepared = prepare_tensor(tensor)
    assert prepared is not None
    assert plan_record(tensor) == prepared.record
    assert prepared.record.size_bytes == len(emit(tensor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_loads_what_is_emitted(dtype: torch.dtype) -> None:
    """torch.load opens our items, scalars and empty tensors too."""
    for shape in ((), (0, 3), (2, 3)):
        tensor = torch.ones(shape).to(dtype)
        loaded = torch.load(io.BytesIO(emit(tensor)), weights_only=True)
        assert loaded.dtype == dtype
        assert loaded.shape == tensor.shape
        assert loaded.untyped_storage().tolist() == tensor.untyped_storage().tolist()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, dtype=torch.complex64).conj(),
        torch._neg_view(torch.randn(3)),
        torch._neg_view(torch.randn(3, dtype=torch.complex64).conj()),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.nn.Parameter(torch.randn(4)),
        torch.arange(4).as_strided((2, 2), (1, 1)),
        torch.arange(3).as_strided((1, 3), (77, 1)),
        torch.arange(4).as_strided((2, 2), (1, 1), 1),
    ],
    ids=["conj", "neg", "both", "imag of conj", "channels_last", "parameter", "overlapping", "odd stride", "offset"],
)
def test_unusual_tensors(tensor: torch.Tensor) -> None:
    """Lazy bits and odd strides are stored as torch stores them."""
    assert emit(tensor) == as_torch_saves(tensor)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096, 65536])
def test_storage_alignment_in_force(alignment: int) -> None:
    """A user's storage_alignment changes our bytes as it changes torch's."""
    tensor = torch.arange(5.0)
    with storage_alignment(alignment):
        assert emit(tensor) == as_torch_saves(tensor)


def test_checksums_switched_off() -> None:
    """Without compute_crc32 the archive holds zeros, as torch's does."""
    with no_checksums():
        for tensor in (torch.arange(5.0), torch.empty(0)):
            assert emit(tensor) == as_torch_saves(tensor)


def test_unknown_archives_are_declined() -> None:
    """When the emitter cannot prove itself against torch, it gives no record rather than a guess."""
    with storage_alignment(1 << 20):  # does not fit the padding's length field
        assert tensor_record(torch.float32, (1,), (1,)) is None
        assert prepare_tensor(torch.zeros(1)) is None


def test_default_device_and_dtype_do_not_matter() -> None:
    """Items do not depend on what a user set as torch's defaults."""
    expected = emit(torch.arange(5.0))
    archive._record.cache_clear()
    archive._style.cache_clear()
    torch.set_default_device("meta")
    try:
        assert emit(torch.arange(5.0, device="cpu")) == expected
    finally:
        torch.set_default_device(None)


class _Holes:
    """A stream that notes where the raw data would be, without reading them."""

    def __init__(self) -> None:
        self.head, self.tail, self.raw_nbytes = b"", b"", 0

    def write(self, data: object) -> int:
        view = memoryview(data)
        if view.nbytes > 1 << 20:
            self.raw_nbytes += view.nbytes
        elif self.raw_nbytes:
            self.tail += bytes(view)
        else:
            self.head += bytes(view)
        return view.nbytes

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("nbytes", [2**32 - 1000, 2**32 - 800, 2**32 - 704, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 12345])
def test_beyond_four_gigabytes(nbytes: int) -> None:
    """Lengths and offsets around 4 GiB move into zip64 fields exactly where torch moves them."""
    stream = _Holes()
    with no_checksums():  # then torch does not read the data either
        torch.save(torch.empty(nbytes, dtype=torch.uint8), stream)
        record = tensor_record(torch.uint8, (nbytes,), (1,))
    assert record is not None
    assert stream.raw_nbytes == record.raw_nbytes
    assert stream.head == record.header
    assert stream.tail == record.trailer(0)
    assert len(stream.tail) == record.trailer_nbytes


def _as_torch_2_6(tensor: torch.Tensor) -> bytes:
    """Write an archive with the records of torch 2.6, which has no format version and no alignment in it."""
    with zipfile.ZipFile(io.BytesIO(as_torch_saves(tensor))) as modern:
        pickled = modern.read("archive/data.pkl")
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer, True, 64)
    for name, content in (("data.pkl", pickled), ("byteorder", b"little")):
        writer.write_record(name, content, len(content))
    writer.write_record("data/0", tensor.untyped_storage(), tensor.nbytes)
    writer.write_end_of_file()
    return buffer.getvalue()


@pytest.mark.skipif(
    importlib.util.find_spec("torch.utils.serialization") is None,
    reason="torch 2.6 writes such archives itself, and all other tests compare with them",
)
def test_archives_of_older_torch() -> None:
    """The style is learned, not built in: fewer records give the archive that such a torch writes."""
    style = archive._learn_style(_as_torch_2_6(torch.zeros(1)), alignment=64, compute_crc32=True)
    tensor = torch.randn(3, 4, dtype=torch.float64)
    record = archive._build(style, tensor.dtype, (3, 4), (4, 1), 0, conj=False, neg=False)
    raw = bytes(tensor.untyped_storage().tolist())
    assert record.header + raw + record.trailer(zlib.crc32(raw)) == _as_torch_2_6(tensor)


def test_a_wrong_checksum_shows() -> None:
    """The checksum given to the trailer is the one that zip tools verify against the bytes."""
    prepared = prepare_tensor(torch.arange(5.0))
    assert prepared is not None
    wrong = prepared.record.header + prepared.memory + prepared.record.trailer(zlib.crc32(prepared.memory) ^ 1)
    with zipfile.ZipFile(io.BytesIO(wrong)) as opened:
        assert opened.testzip() == "archive/data/0"


def test_records_say_how_to_read_the_bytes() -> None:
    """Strides are given only where they matter, and lazy bits are told apart."""

    def record(tensor: torch.Tensor) -> TensorRecord:
        planned = plan_record(tensor)
        assert planned is not None
        return planned

    assert record(torch.zeros(2, 3)).strides is None
    assert record(torch.zeros(2, 3).t()).strides == (1, 3)
    assert record(torch.zeros(2, 3)).is_plain
    assert not record(torch.zeros(2, dtype=torch.complex64).conj()).is_plain
    assert not record(torch.arange(4).as_strided((2, 2), (1, 1), 1)).is_plain


@given(tensors())
def test_row_major_is_contiguous(tensor: torch.Tensor) -> None:
    """Row-major means what torch calls contiguous."""
    assert is_row_major(tuple(tensor.shape), tensor.stride()) == tensor.is_contiguous()
