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
from dcp_cloud.experimental.index import FileIndex, Record, checks_of
from dcp_cloud.format.pickle_scan import RefusedInstructionError, scan_pickle
from dcp_cloud.transfer.download import Downloader, Target


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


class _Unrestricted(pickle.Unpickler):
    """Runs whatever code the pickle holds, as ``torch.load(weights_only=False)`` does."""

    def __init__(self, data: bytes, load_storage: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._load_storage = load_storage

    def persistent_load(self, saved_id: Any) -> Any:  # noqa: ANN401 - what a pickle gives
        return self._load_storage(saved_id)

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - any class
        if module == "torch" and name.endswith("Storage") and name != "UntypedStorage":
            # As torch.load does: only its dtype is wanted, and the class itself warns when it is asked for that.
            return torch.serialization.StorageType(name)  # type: ignore[no-untyped-call]
        return super().find_class(module, name)


def read_pickle(downloader: Downloader, index: FileIndex) -> bytes:
    """Fetch the pickle of a file.

    Args:
        downloader: Reads from the place of the file.
        index: The file.

    Returns:
        The record ``data.pkl``.

    Raises:
        CorruptCheckpointError: There is none, or it is of another byte order.
        PreconditionError: The file was replaced since its index was read.
    """
    contents: dict[bytes, bytes] = {}

    def keep(name: bytes, memory: memoryview) -> None:
        contents[name] = bytes(memory)

    records = [(name, index.records.get(name)) for name in (b"data.pkl", b"byteorder")]
    downloader.run(
        [
            Target(
                key=index.key,
                start=record.start,
                nbytes=record.nbytes,
                checks=checks_of(record),
                done=lambda memory, name=name: keep(name, memory),  # type: ignore[misc]
                label=name.decode(),
            )
            for name, record in records
            if record is not None and record.nbytes
        ],
        if_match=index.etag,
    )
    if contents.get(b"byteorder", b"little") != b"little" or b"data.pkl" not in contents:
        raise CorruptCheckpointError(
            "the file of a rank has no pickle or another byte order than this machine's", key=index.key
        )
    return contents[b"data.pkl"]


def without_data(nbytes: int, location: str) -> torch.UntypedStorage:  # noqa: ARG001 - as unpickle calls it
    """Make a storage that has a length only, wherever it was saved from."""
    return torch.UntypedStorage(nbytes, device="meta")  # type: ignore[no-untyped-call]


def unpickle(
    data: bytes,
    index: FileIndex,
    make: Callable[[int, str], torch.UntypedStorage],
    safe_globals: Sequence[Any],
    *,
    unsafe: bool = False,
) -> Unpickled:
    """Read the pickle of a file with ``weights_only`` semantics.

    Args:
        data: The record ``data.pkl``.
        index: The file.
        make: Makes an empty storage of a length for a location.
        safe_globals: Further types to allow.
        unsafe: Run whatever code the pickle holds.

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

    unpickler: Any
    try:
        if unsafe:
            unpickler = _Unrestricted(data, persistent_load)
        else:
            scan_pickle(data, may_have_storages=True)  # torch's unpickler hashes keys of any depth
            unpickler = _weights_only_unpickler.Unpickler(io.BytesIO(data), encoding="utf-8")
            unpickler.persistent_load = persistent_load
        with torch.serialization.safe_globals(list(safe_globals)):
            value = unpickler.load()
    except DcpCloudError:
        raise
    except (pickle.UnpicklingError, RefusedInstructionError) as error:
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
        _utils._sparse_tensors_to_validate.clear()  # else the next torch.load would check them


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


class _TensorFinder(pickle.Pickler):
    """Notices tensors in whatever it is given."""

    found = False

    def persistent_id(self, obj: Any) -> int | None:  # noqa: ANN401 - any part of the object
        if not isinstance(obj, torch.Tensor):
            return None
        self.found = True
        return 0


def hides_tensors(value: object) -> bool:
    """Tell whether there are tensors in a value, in whatever way it holds them.

    Args:
        value: Anything.

    Returns:
        Whether there are, or whether nobody can tell.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return False
    finder = _TensorFinder(io.BytesIO())
    try:
        finder.dump(value)
    except Exception:  # what cannot be pickled again was not pickled in the first place
        return True
    return finder.found
