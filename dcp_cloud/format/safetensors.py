"""The header of a safetensors file: made from names, dtypes and shapes, and read without trusting a word of it.

A file is eight bytes (the header's length, little-endian), the header (JSON: for each tensor its dtype, shape and the
range of its bytes; ``__metadata__`` holds texts), and the tensors' bytes, row-major, one after the other without gaps.
The rules are those of https://github.com/huggingface/safetensors (README, "Format", and ``safetensors/src/tensor.rs``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from dcp_cloud.errors import CorruptCheckpointError, UnsupportedFormatError

SUFFIX = ".safetensors"
LENGTH_BYTES = 8
"""Length of the number in front of the header."""
MAX_HEADER_BYTES = 100_000_000
"""No reader of the format takes a longer header (``MAX_HEADER_SIZE`` in ``safetensors/src/tensor.rs``)."""

_METADATA = "__metadata__"
# torch tensors have at most 64 dimensions.
_MAX_DIMENSIONS = 64
# What the format calls a dtype, and the attribute of torch that it is; an older torch lacks some of them.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
_DTYPES = {name: getattr(torch, attribute) for name, attribute in _NAMES.items() if hasattr(torch, attribute)}
_NAME_OF = {dtype: name for name, dtype in _DTYPES.items()}
# Two values of this dtype share a byte; torch counts bytes in the last dimension, the format counts values.
_PACKED = "F4"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor to be written.

    Args:
        name: Its name.
        dtype: Its dtype.
        shape: Its shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Length of its values, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """A tensor of a file.

    Args:
        dtype: Its dtype.
        shape: Its shape.
        start: Offset of its first byte in the file.
        nbytes: Length, bytes; always what dtype and shape take.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says, checked for sense.

    Args:
        tensors: Name to tensor.
        metadata: The texts of ``__metadata__``.
    """

    tensors: Mapping[str, FileTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def dtype_name(dtype: torch.dtype, *, tensor: str) -> str:
    """Give the format's name of a dtype.

    Args:
        dtype: The dtype.
        tensor: The tensor's name, for the message.

    Returns:
        ``F32``, ``BF16`` …

    Raises:
        UnsupportedFormatError: The format has no such dtype.
    """
    name = _NAME_OF.get(dtype)
    if name is None:
        raise UnsupportedFormatError(
            f"{tensor!r} cannot be stored in a safetensors file",
            cause=f"the format has no name for {dtype}",
            hint="convert the tensor, or save it with CloudStorageWriter, which stores every dtype",
        )
    return name


def file_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Put tensors into the order of a file: long elements first, so that all of them are aligned; then by name.

    Args:
        specs: Tensors.

    Returns:
        The same tensors.
    """
    return sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))


def emit_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Make all that stands before the tensors' bytes.

    Args:
        specs: The tensors in the order in which their bytes follow.
        metadata: Texts for ``__metadata__``.

    Returns:
        The length and the header, padded with spaces so that the tensors' bytes are aligned.

    Raises:
        UnsupportedFormatError: The format has no name for a dtype, a name occurs twice or is reserved, or the header is
            too long.
    """
    document: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        if spec.name in document or spec.name == _METADATA:
            raise UnsupportedFormatError(f"{spec.name!r} would stand twice in one safetensors file")
        name = dtype_name(spec.dtype, tensor=spec.name)
        shape = list(spec.shape)
        if name == _PACKED:
            if not shape:
                raise UnsupportedFormatError(f"{spec.name!r} is packed and has no dimension")
            shape[-1] *= 2
        stop = position + spec.nbytes
        document[spec.name] = {"dtype": name, "shape": shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES:
        raise UnsupportedFormatError(
            "the header of a safetensors file would be too long",
            cause=f"{len(text)} bytes, {MAX_HEADER_BYTES} are allowed",
            hint="spread the tensors over more files",
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def header_bytes(data: bytes | memoryview, *, size_bytes: int, key: str) -> int:
    """Read the length of the header.

    Args:
        data: The beginning of the file.
        size_bytes: Length of the whole file.
        key: The file, for messages.

    Returns:
        Where the tensors' bytes begin.

    Raises:
        CorruptCheckpointError: The file is too short for a header, or the length is a lie.
    """
    if size_bytes < LENGTH_BYTES or len(data) < LENGTH_BYTES:
        raise _damaged(key, f"it is {size_bytes} bytes long")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES or length > size_bytes - LENGTH_BYTES:
        raise _damaged(key, f"its header claims {length} bytes of the file's {size_bytes}")
    return LENGTH_BYTES + length


def parse_header(data: bytes | memoryview, *, size_bytes: int, key: str) -> Header:
    """Read a header, trusting nothing in it.

    Args:
        data: The file up to where the tensors' bytes begin.
        size_bytes: Length of the whole file.
        key: The file, for messages.

    Returns:
        What it says; the tensors' ranges lie one after the other and fill the file.

    Raises:
        CorruptCheckpointError: It is no such header, or its ranges overlap, leave gaps, leave the file or do not fit
            their shapes.
        UnsupportedFormatError: A dtype is not known.
    """
    start = header_bytes(data, size_bytes=size_bytes, key=key)
    document = load_json(data[LENGTH_BYTES:start], key=key)
    metadata = document.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damaged(key, "its __metadata__ is not made of texts")
    tensors = {name: _tensor(name, entry, start, key) for name, entry in document.items()}
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].nbytes)):
        if tensor.start != position:
            fault = "overlap with" if tensor.start < position else "leave a gap after"
            raise _damaged(key, f"the bytes of {name!r} {fault} those before them")
        position += tensor.nbytes
    if position != size_bytes:
        raise _damaged(key, f"its tensors end at byte {position} of {size_bytes}")
    return Header(tensors=tensors, metadata=metadata)


def load_json(data: bytes | memoryview, *, key: str) -> dict[str, Any]:
    """Read a JSON object from a bucket.

    Args:
        data: The text, UTF-8.
        key: Where it is from, for messages.

    Returns:
        The object. No name stands twice in it or in what it holds.

    Raises:
        CorruptCheckpointError: It is something else.
    """
    try:
        document = json.loads(bytes(data), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(key, error if isinstance(error, ValueError) else "it is nested too deeply") from error
    if not isinstance(document, dict):
        raise _damaged(key, f"it holds a {type(document).__name__} instead of an object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _tensor(name: str, entry: object, begin: int, key: str) -> FileTensor:
    shown = ascii(name[:100])
    if not isinstance(entry, dict):
        raise _damaged(key, f"its entry of {shown} is no object")
    shape, offsets, dtype_text = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > _MAX_DIMENSIONS:
        raise _damaged(key, f"its entry of {shown} has no shape or no range")
    dtype = _DTYPES.get(dtype_text) if isinstance(dtype_text, str) else None
    if dtype is None:
        raise UnsupportedFormatError(
            f"the tensor {shown} has an unknown dtype",
            key=key,
            cause=ascii(dtype_text)[:100],
            hint="a newer torch may know it; this one reads " + ", ".join(_DTYPES),
        )
    if dtype_text == _PACKED:
        if not shape or shape[-1] % 2:
            raise _damaged(key, f"the shape of {shown} has half a byte")
        shape = [*shape[:-1], shape[-1] // 2]
    start, stop = offsets
    nbytes = math.prod(shape) * dtype.itemsize
    if stop - start != nbytes:
        raise _damaged(key, f"the range of {shown} has {stop - start} bytes, its shape takes {nbytes}"[:300])
    return FileTensor(dtype=dtype, shape=tuple(shape), start=begin + start, nbytes=nbytes)


def _naturals(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _damaged(key: str, cause: str | BaseException) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "this is no sound safetensors file" if key.endswith(SUFFIX) else "this is no sound index",
        key=key,
        cause=cause,
        hint="store the file anew from its source",
    )
