"""Headers of safetensors files: what is made is read back, what others make is read, what lies is refused."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load, save

from dcp_cloud.errors import DcpCloudError, UnsupportedFormatError
from dcp_cloud.format.safetensors import (
    _DTYPES,
    MAX_HEADER_BYTES,
    TensorSpec,
    dtype_name,
    emit_header,
    file_order,
    header_bytes,
    parse_header,
)

specs = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(max_size=20).filter(lambda name: name != "__metadata__"),
        dtype=st.sampled_from(sorted(_DTYPES.values(), key=str)),
        shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    ),
    max_size=6,
    unique_by=lambda spec: spec.name,
)


@given(specs=specs, metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_is_made_is_read_back(specs: list[TensorSpec], metadata: dict[str, str]) -> None:
    """Names, dtypes, shapes and texts survive; the tensors lie where the order says."""
    order = file_order(specs)
    header = emit_header(order, metadata)
    size_bytes = len(header) + sum(spec.nbytes for spec in order)
    found = parse_header(header, size_bytes=size_bytes, key="m.safetensors")
    assert len(header) % 8 == 0
    assert dict(found.metadata) == metadata
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in specs
    }
    position = len(header)
    for spec in order:
        assert found.tensors[spec.name].start == position
        position += spec.nbytes


def test_the_header_is_the_one_that_safetensors_writes() -> None:
    """Same order, same offsets: with the same texts the whole file is the same, and theirs is read."""
    state = {"b": torch.randn(3, 5), "a": torch.arange(4), "c": torch.ones(3, dtype=torch.bool), "e": torch.empty(0, 2)}
    theirs = save(state, {"format": "pt"})
    order = file_order(TensorSpec(name=name, dtype=t.dtype, shape=tuple(t.shape)) for name, t in state.items())
    ours = emit_header(order, {"format": "pt"})
    assert theirs.startswith(ours)
    found = parse_header(
        theirs[: header_bytes(theirs, size_bytes=len(theirs), key="m")], size_bytes=len(theirs), key="m"
    )
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }


def test_safetensors_knows_the_names_of_all_dtypes() -> None:
    """A name that another library would not know is no name of the format."""
    for name, dtype in _DTYPES.items():
        header = emit_header([TensorSpec(name="a", dtype=dtype, shape=(2,))], {})
        data = header + bytes(2 * dtype.itemsize)
        if name in ("F4", "F8_E8M0"):  # the format has them, its torch door does not
            continue
        assert load(data)["a"].dtype == dtype


@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_changed_byte_is_an_error_by_type_or_another_header(position: int, byte: int) -> None:
    """No byte of a header makes the parser raise anything else, or point outside of the file."""
    state = {"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.uint8)}
    data = bytearray(save(state, {"format": "pt"}))
    data[position % len(data)] = byte
    try:
        found = parse_header(bytes(data), size_bytes=len(data), key="m.safetensors")
    except DcpCloudError:
        return
    assert all(8 <= tensor.start <= tensor.start + tensor.nbytes <= len(data) for tensor in found.tensors.values())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    )
)
def test_any_document_is_an_error_by_type_or_a_header(document: object) -> None:
    """Whatever JSON stands there."""
    text = json.dumps({"a": document, "__metadata__": document}).encode()
    data = len(text).to_bytes(8, "little") + text
    try:
        parse_header(data, size_bytes=len(data), key="m.safetensors")
    except DcpCloudError:
        return
    pytest.fail("a document without a range passed for a tensor")


def test_what_cannot_be_written_is_refused() -> None:
    """Dtypes without a name, names that stand twice, headers that nobody would read."""
    with pytest.raises(UnsupportedFormatError, match="complex128"):
        dtype_name(torch.complex128, tensor="a")
    spec = TensorSpec(name="a", dtype=torch.float32, shape=(1,))
    with pytest.raises(UnsupportedFormatError, match="twice"):
        emit_header([spec, spec], {})
    with pytest.raises(UnsupportedFormatError, match="twice"):
        emit_header([TensorSpec(name="__metadata__", dtype=torch.float32, shape=(1,))], {})
    with pytest.raises(UnsupportedFormatError, match="too long"):
        emit_header([spec], {"x": "y" * MAX_HEADER_BYTES})
