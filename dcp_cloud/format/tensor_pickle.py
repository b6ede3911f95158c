"""The pickle inside a tensor's item, made without the tensor's data."""

from __future__ import annotations

import io
import math
import pickle
from functools import lru_cache
from typing import Any

import torch


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
