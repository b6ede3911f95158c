"""The pickle of a state dict, read by torch's restricted unpickler, with storages that hold nothing yet."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import _utils, _weights_only_unpickler

from dcp_cloud.errors import ConfigError, CorruptCheckpointError, DcpCloudError, UnsafeCheckpointError
from dcp_cloud.experimental.index import FileIndex, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    """A storage that is yet to be filled.

    Args:
        storage: The storage, on the device where it shall be.
        record: Where its bytes are.
        location: The device it was saved from, as torch writes it.
    """

    storage: torch.UntypedStorage
    record: Record
    location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpickled:
    """An object whose tensors hold nothing yet.

    Args:
        value: The object.
        storages: The storages of its tensors, by the address that torch gives them.
    """

    value: Any
    storages: dict[int, Empty]

    def storage_of(self, tensor: torch.Tensor) -> Empty | None:
        """Find the storage of one of the object's tensors; None if a tensor was made in another way."""
        return self.storages.get(tensor.untyped_storage()._cdata)


def unpickle(
    data: bytes,
    index: FileIndex,
    make: Callable[[int, str], torch.UntypedStorage],
    safe_globals: Sequence[Any],
) -> Unpickled:
    """Read the pickle of a file with ``weights_only`` semantics.

    Args:
        data: The record ``data.pkl``.
        index: The file.
        make: Makes an empty storage of a length for a location.
        safe_globals: Further types to allow.

    Returns:
        The object.

    Raises:
        UnsafeCheckpointError: The pickle names something that is not allowed.
        CorruptCheckpointError: It is damaged.
    """
    storages: dict[int, Empty] = {}
    typed: dict[str, Any] = {}

    def persistent_load(saved_id: Any) -> Any:  # noqa: ANN401 - what a pickle gives
        _, storage_type, name, location, numel = saved_id
        dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
        if name not in typed:
            record = index.storage(name, numel * dtype.itemsize)
            storage = make(record.nbytes, location)
            storages[storage._cdata] = Empty(storage=storage, record=record, location=location)
            typed[name] = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=storage, dtype=dtype, _internal=True
            )
        return typed[name]

    unpickler = _weights_only_unpickler.Unpickler(io.BytesIO(data), encoding="utf-8")
    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
    try:
        with torch.serialization.safe_globals(list(safe_globals)):
            value = unpickler.load()  # type: ignore[no-untyped-call]
    except DcpCloudError:
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            "the file of a rank names something that is not allowed to be loaded",
            key=index.key,
            cause=error,
            hint="if you trust it, allow the type: safe_globals=[...] of the reader",
        ) from error
    except Exception as error:  # the unpickler trips over foreign bytes in many ways
        raise CorruptCheckpointError(
            "the file of a rank cannot be read", key=index.key, cause=error, hint="load another checkpoint"
        ) from error
    return Unpickled(value=value, storages=storages)


@contextmanager
def sparse_checks() -> Iterator[Callable[[], None]]:
    """Give the function that checks the sparse tensors of a load once they are filled; forget what it did not check."""
    try:
        yield _utils._validate_loaded_sparse_tensors
    finally:
        _utils._sparse_tensors_to_validate.clear()


def placing(map_location: Any) -> Callable[[int, str], torch.UntypedStorage]:  # noqa: ANN401 - what torch.load takes
    """Give the function that makes storages where ``torch.load`` would put them.

    Args:
        map_location: As for ``torch.load``.

    Returns:
        Makes a storage of a length for the location it was saved from.
    """
    restore = torch.serialization._get_restore_location(map_location)  # type: ignore[no-untyped-call]

    def make(nbytes: int, location: str) -> torch.UntypedStorage:
        try:
            placed = restore(torch.UntypedStorage(nbytes), location)  # type: ignore[no-untyped-call]
        except Exception as error:  # a missing device is a RuntimeError, a function of the user's anything
            raise ConfigError(
                f"a tensor saved from {location!r} cannot be put there",
                cause=error,
                hint="pass map_location, for example map_location='cpu'",
            ) from error
        return placed if isinstance(placed, torch.UntypedStorage) else placed._untyped_storage

    return make
