"""Loading a whole stored item with ``torch.load``, for tensors that the parser leaves alone."""

from __future__ import annotations

import io
import pickle
import zipfile

import torch

from dcp_cloud.errors import CorruptCheckpointError, UnsafeCheckpointError

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
        UnsafeCheckpointError: The archive names something that ``torch.load(weights_only=True)`` does not allow.
    """
    require_stored(data, key=key)
    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if names := _forbidden(data):
            raise UnsafeCheckpointError(
                "a stored tensor names something that is not allowed to be loaded",
                key=key,
                cause=", ".join(sorted(names)),
                hint="if you trust the checkpoint, allow it with torch.serialization.add_safe_globals",
            ) from error
        raise _corrupt(key, error) from error
    except Exception as error:  # the same: whatever torch trips over in foreign bytes
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


def _forbidden(data: bytes | bytearray | memoryview) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except Exception:  # too damaged to tell
        return []


def _corrupt(key: str, cause: str | BaseException) -> CorruptCheckpointError:
    return CorruptCheckpointError("a stored tensor is damaged", key=key, cause=cause, hint=_WHOLE)
