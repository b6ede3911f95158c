"""Loading a whole stored item with ``torch.load``, for tensors that the parser leaves alone."""

from __future__ import annotations

import io
import struct
import zipfile

import torch

from dcp_cloud.errors import CorruptCheckpointError, UnsafeCheckpointError
from dcp_cloud.format.rehearsal import RefusedError, rehearse
from dcp_cloud.format.ziplayout import END, END64, END64_SIGNATURE, END_SIGNATURE, FULL, LOCATOR, LOCATOR_SIGNATURE

_WHOLE = "restore the object from a copy, or load another checkpoint"


def load_item(data: bytes | bytearray | memoryview, *, key: str) -> torch.Tensor:
    """Load a tensor from the bytes of its item.

    Args:
        data: The whole item, transforms undone.
        key: Key of the object, for messages.

    Returns:
        The tensor, on the CPU.

    Raises:
        CorruptCheckpointError: The bytes are no archive of a tensor, or would swell when they are unpacked.
        UnsafeCheckpointError: The archive names something that ``torch.load(weights_only=True)`` does not allow, or
            uses what is allowed in a way that no writer does.
    """
    require_stored(data, key=key)
    try:
        rehearse(data)
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if isinstance(tensor, torch.Tensor):
            _check_indices(tensor)
    except RefusedError as error:
        raise UnsafeCheckpointError(
            "a stored tensor would do more than describe itself when it is loaded",
            key=key,
            cause=str(error),
            hint="if you trust the checkpoint, allow its types with torch.serialization.add_safe_globals",
        ) from error
    except Exception as error:  # whatever torch trips over in foreign bytes
        raise _corrupt(key, error) from error
    if not isinstance(tensor, torch.Tensor):
        raise _corrupt(key, f"it holds a {type(tensor).__name__}, not a tensor")
    return tensor


def require_stored(data: bytes | bytearray | memoryview, *, key: str) -> None:
    """See that an archive does not swell when it is unpacked, and that its records have their checksums.

    torch's own reader does not look at the checksums.

    Args:
        data: The archive.
        key: Key of the object, for messages.

    Raises:
        CorruptCheckpointError: It is no archive, claims to hold more than its length, or is damaged.
    """
    if not _has_one_directory(data):
        raise _corrupt(key, "it does not end as an archive does")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            unpacked_nbytes = sum(entry.file_size for entry in entries)
            # A user may let torch.save store no checksums; then all are zero.
            is_known = unpacked_nbytes <= len(data) and any(entry.CRC for entry in entries)
            damaged = archive.testzip() if is_known else None
    except Exception as error:  # zipfile raises many types for damaged archives
        raise _corrupt(key, error) from error
    if unpacked_nbytes > len(data):
        raise _corrupt(key, f"{len(data)} bytes claim to hold {unpacked_nbytes}")
    if damaged is not None:
        raise _corrupt(key, f"the checksum of its record {damaged!r} does not hold")


def _check_indices(tensor: torch.Tensor) -> None:
    """See that a sparse tensor's indices stay within it; torch takes them as they are, and writes where they lead."""
    if tensor.layout is torch.sparse_coo:
        parts = tensor._indices(), tensor._values()
        torch.sparse_coo_tensor(*parts, tensor.shape, check_invariants=True)
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = tensor.crow_indices(), tensor.col_indices()
        torch.sparse_compressed_tensor(
            *parts, tensor.values(), tensor.shape, layout=tensor.layout, check_invariants=True
        )
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = tensor.ccol_indices(), tensor.row_indices()
        torch.sparse_compressed_tensor(
            *parts, tensor.values(), tensor.shape, layout=tensor.layout, check_invariants=True
        )


def _has_one_directory(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether the directory ends where its end record says: else two readers may find two different ones."""
    try:
        place = len(data) - END.size
        signature, *_, size, offset, comment_nbytes = END.unpack_from(data, place)
        if signature != END_SIGNATURE or comment_nbytes:
            return False
        if bytes(data[place - LOCATOR.size :][:4]) == LOCATOR_SIGNATURE:
            short, place = (size, offset), place - LOCATOR.size - END64.size
            signature, *_, size, offset = END64.unpack_from(data, place)
            located = LOCATOR.unpack_from(data, place + END64.size)[2]
            if signature != END64_SIGNATURE or located != place or short != (min(size, FULL), min(offset, FULL)):
                return False
    except struct.error:
        return False
    return bool(offset + size == place)


def _corrupt(key: str, cause: str | BaseException) -> CorruptCheckpointError:
    return CorruptCheckpointError("a stored tensor is damaged", key=key, cause=cause, hint=_WHOLE)
