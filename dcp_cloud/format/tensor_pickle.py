"""The pickle inside a tensor's item: made without the tensor's data, and read without being run."""

from __future__ import annotations

import io
import math
import pickle
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

QUANTISED = frozenset({torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4})
"""Dtypes whose values need more than their bytes."""
PICKLE_LIMIT_BYTES = 2048
"""A pickle of 64 dimensions, the most that torch has, takes less."""


class _Storage:
    """Stands for the tensor's storage in the pickle; ``identity`` is what torch writes in its place."""

    def __init__(self, identity: tuple[Any, ...]) -> None:
        self.identity = identity


class _Rebuild:
    """Pickles to the same call as a tensor."""

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:  # noqa: ANN401 - what __reduce_ex__ gives
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:  # noqa: ANN401
        return obj.identity if isinstance(obj, _Storage) else None


def pickled_tensor(
    dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, *, conj: bool, neg: bool
) -> bytes:
    """Pickle as ``torch.save`` would pickle a plain CPU tensor that fills its storage.

    Args:
        dtype: The tensor's dtype.
        shape: Its sizes.
        strides: Its strides, in elements.
        offset: Its storage offset, in elements.
        conj: Whether its conjugate bit is set.
        neg: Whether its negative bit is set.

    Returns:
        The content of the record ``data.pkl``.

    Raises:
        KeyError: torch cannot save this dtype.
    """
    function, storage_type, unit_bytes, rest = _model(dtype, conj, neg)
    units = math.prod(shape) * dtype.itemsize // unit_bytes
    stand_in = _Storage(("storage", storage_type, "0", "cpu", units))
    # The pickler writes an object that it has met by reference: sizes and strides must be two objects, as in torch.
    numbers = (offset, (*shape,), (*strides,))
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol=torch.serialization.DEFAULT_PROTOCOL)
    pickler.dump(_Rebuild(function, (stand_in, *numbers, *rest)))
    return buffer.getvalue()


@lru_cache(maxsize=256)
def _model(dtype: torch.dtype, conj: bool, neg: bool) -> tuple[Any, type[Any], int, tuple[Any, ...]]:  # noqa: FBT001
    """Ask torch how it pickles such a tensor, from an empty one.

    Returns:
        The function that rebuilds it, the storage's type, the bytes of one unit in which the storage's length is
        counted, and the arguments after storage, offset, sizes and strides.
    """
    model = torch.empty(0, dtype=torch.uint8, device="cpu").view(dtype)  # a view: some dtypes warn when they are made
    model = model.conj() if conj else model
    model = torch._neg_view(model) if neg else model
    function, arguments = model.__reduce_ex__(torch.serialization.DEFAULT_PROTOCOL)  # type: ignore[no-untyped-call]
    storage = arguments[0]
    if isinstance(storage, torch.storage.TypedStorage):
        storage_type = getattr(torch, storage._pickle_storage_type())  # type: ignore[no-untyped-call]
        return function, storage_type, dtype.itemsize, arguments[4:]
    return function, torch.UntypedStorage, 1, arguments[4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPickle:
    """What a pickle says of its tensor, checked for sense.

    Args:
        dtype: The tensor's dtype.
        shape: Its sizes.
        strides: Its strides, in elements.
        storage_offset: Element of the storage at which it starts.
        storage_nbytes: Length of its storage, bytes.
        conj: Whether its conjugate bit is set.
        neg: Whether its negative bit is set.
        end: Where the pickle ends.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int
    storage_nbytes: int
    conj: bool
    neg: bool
    end: int


def _pattern() -> re.Pattern[bytes]:
    """Spell out the one pickle that is understood: a call of ``_rebuild_tensor_v2`` or ``_v3``, nothing computed."""
    long = b"|".join(rb"\x8a%s.{%d}" % (re.escape(bytes([n])), n) for n in range(5, 9))
    integer = rb"(?:K.|M..|J.{4}|" + long + rb")"
    integers = rb"(\)|%(i)s\x85q.|%(i)s{2}\x86q.|%(i)s{3}\x87q.|\(%(i)s{4,64}tq.)" % {b"i": integer}
    flag = rb"(?:X\x04\0\0\0conj|X\x03\0\0\0neg)q.\x88"
    flags = rb"(?:}q.(?:(" + flag + rb")s|\((" + flag + flag + rb")u))?"
    return re.compile(
        rb"\x80\x02ctorch\._utils\n_rebuild_tensor_v([23])\nq.\("
        rb"\(X\x07\0\0\0storageq.ctorch(?:\.storage)?\n(\w{1,32})\nq.X\x01\0\0\0000q.X\x03\0\0\0cpuq.("
        + integer
        + rb")tq.Q"
        rb"(" + integer + rb")" + integers + integers + rb"[\x88\x89]ccollections\nOrderedDict\nq.\)Rq."
        rb"(?:ctorch\n(\w{1,32})\nq.)?" + flags + rb"tq.Rq.\.",
        re.DOTALL,
    )


_TENSOR = _pattern()
_DTYPES = {
    name.encode(): value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype) and value not in QUANTISED
}
_STORAGES = {
    b"BoolStorage": torch.bool,
    b"ByteStorage": torch.uint8,
    b"CharStorage": torch.int8,
    b"ShortStorage": torch.int16,
    b"IntStorage": torch.int32,
    b"LongStorage": torch.int64,
    b"HalfStorage": torch.float16,
    b"BFloat16Storage": torch.bfloat16,
    b"FloatStorage": torch.float32,
    b"DoubleStorage": torch.float64,
    b"ComplexFloatStorage": torch.complex64,
    b"ComplexDoubleStorage": torch.complex128,
}


def match_tensor_pickle(data: bytes, start: int) -> TensorPickle | None:
    """Read the pickle of a plain tensor without running it.

    A pickle is a program; only the very instructions that ``torch.save`` writes for a plain tensor are recognised.

    Args:
        data: Bytes that hold the pickle.
        start: Where it starts.

    Returns:
        What it says, or None if it is another pickle, is cut off, or describes a tensor that leaves its storage.
    """
    match = _TENSOR.match(data, start)
    if match is None:
        return None
    version, storage, units, offset, shape, strides, name, *flags = match.groups(b"")
    dtype, unit_bytes = _dtype_of(version, storage, name)
    if dtype is None:
        return None
    numbers = (*_integers(units), *_integers(offset))
    sizes, steps = _tuple(shape), _tuple(strides)
    if len(sizes) != len(steps) or min((*numbers, *sizes, *steps)) < 0:
        return None
    found = TensorPickle(
        dtype=dtype,
        shape=sizes,
        strides=steps,
        storage_offset=numbers[1],
        storage_nbytes=numbers[0] * unit_bytes,
        conj=any(b"conj" in flag for flag in flags),
        neg=any(b"neg" in flag for flag in flags),
        end=match.end(),
    )
    return found if _fits(found) else None


def _fits(found: TensorPickle) -> bool:
    elements, rest = divmod(found.storage_nbytes, found.dtype.itemsize)
    numel = math.prod(found.shape)
    if rest or numel > elements or (found.conj and not found.dtype.is_complex):
        return False
    last = sum((size - 1) * stride for size, stride in zip(found.shape, found.strides, strict=True))
    return not numel or found.storage_offset + last < elements


def _dtype_of(version: bytes, storage: bytes, name: bytes) -> tuple[torch.dtype | None, int]:
    """Tell the dtype and the bytes of one unit in which the storage is counted."""
    if version == b"2":
        dtype = _STORAGES.get(storage) if not name else None
        return dtype, dtype.itemsize if dtype is not None else 0
    return (_DTYPES.get(name) if storage == b"UntypedStorage" else None), 1


def _tuple(data: bytes) -> tuple[int, ...]:
    if data == b")":
        return ()
    return _integers(data[1 if data[:1] == b"(" else 0 : -3])  # without the mark, the tuple and its memo number


def _integers(data: bytes) -> tuple[int, ...]:
    values = []
    position = 0
    while position < len(data):
        code = data[position]
        start = position + 1
        if code == ord("\x8a"):
            position = start + 1 + data[start]
            start += 1
        else:
            position = start + {ord("K"): 1, ord("M"): 2, ord("J"): 4}[code]
        values.append(int.from_bytes(data[start:position], "little", signed=code not in b"KM"))
    return tuple(values)
