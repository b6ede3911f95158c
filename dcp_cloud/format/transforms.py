"""Stream transforms of items: what ``torch.distributed.checkpoint._extension`` calls extensions, such as zstandard.

torch's reader undoes transforms in the order of the descriptors, from the stored bytes outwards. torch's writer records
the descriptors of two or more extensions in the opposite order (seen in 2.13: it cannot read its own files then). We
write what torch's reader expects, and read both.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, cast

from dcp_cloud.errors import CorruptCheckpointError, UnsupportedFormatError
from dcp_cloud.format.ziplayout import LOCAL_SIGNATURE

if TYPE_CHECKING:
    from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension

_MAX_TRANSFORMS = 16
_PIECE_BYTES = 1 << 20


def transform_bytes(
    data: bytes | memoryview, extensions: Sequence[StreamTransformExtension]
) -> tuple[bytes, list[str]]:
    """Apply extensions to an item.

    Args:
        data: The item.
        extensions: What to apply; the last one is applied to the item itself and the first one to what the others
            made of it, as for torch's ``FileSystemWriter(_extensions=…)``. Without any, the item stays as it is.

    Returns:
        The bytes to store, and the descriptors to record with them.
    """
    if not extensions:
        return bytes(data), []
    sink = _KeptOpen()
    stream = cast(IO[bytes], sink)
    for extension in extensions:
        stream = extension.transform_to(stream)
    stream.write(data)
    stream.close()
    return sink.getvalue(), [extension.get_descriptor() for extension in extensions]


def undo_transforms(
    data: bytes | memoryview,
    descriptors: Sequence[str],
    registry: ExtensionRegistry | None = None,
    *,
    limit_nbytes: int,
    key: str,
) -> bytes:
    """Undo the extensions of a stored item.

    Args:
        data: The stored bytes.
        descriptors: What was recorded with them.
        registry: Knows the extensions by name; torch's own registry if None.
        limit_nbytes: Most bytes that the item may have; a small object can claim to hold terabytes.
        key: Key of the object, for messages.

    Returns:
        The item.

    Raises:
        UnsupportedFormatError: An extension is unknown here, or its library is missing.
        CorruptCheckpointError: The bytes cannot be transformed back, or into more than the limit.
    """
    if not descriptors:
        return bytes(data)
    if len(descriptors) > _MAX_TRANSFORMS:
        raise _corrupt(key, f"{len(descriptors)} transforms are recorded for an item")
    extensions = _extensions(descriptors, registry, key)
    try:
        item = _undo(data, extensions, limit_nbytes, key)
    except CorruptCheckpointError:
        if len(extensions) == 1:
            raise
        return _undo(data, extensions[::-1], limit_nbytes, key)
    if len(extensions) > 1 and not item.startswith(LOCAL_SIGNATURE):  # all that torch stores are zip archives
        with contextlib.suppress(CorruptCheckpointError):
            other = _undo(data, extensions[::-1], limit_nbytes, key)
            item = other if other.startswith(LOCAL_SIGNATURE) else item
    return item


class _KeptOpen(io.BytesIO):
    """Stays readable when the stream wrapped around it is closed; closing is how a stream transform ends."""

    def close(self) -> None:
        pass


def _extensions(
    descriptors: Sequence[str], registry: ExtensionRegistry | None, key: str
) -> list[StreamTransformExtension]:
    try:
        from torch.distributed.checkpoint import _extension as torch_extension  # noqa: PLC0415 - torch 2.6 has none
    except ImportError as error:
        raise _unsupported(key, descriptors[0], error) from error
    known = torch_extension.ExtensionRegistry() if registry is None else registry
    found = []
    for descriptor in descriptors:
        try:
            (extension,) = known.from_descriptor_list([descriptor])
        except Exception as error:  # unknown names, versions and missing libraries; extensions are foreign code
            raise _unsupported(key, descriptor, error) from error
        if not isinstance(extension, torch_extension.StreamTransformExtension):
            raise _unsupported(key, descriptor, "it is no stream transform")
        found.append(extension)
    return found


def _undo(
    data: bytes | memoryview, extensions: Sequence[StreamTransformExtension], limit_nbytes: int, key: str
) -> bytes:
    stream = cast(IO[bytes], io.BytesIO(data))
    pieces: list[bytes] = []
    room = limit_nbytes
    try:
        for extension in extensions:
            stream = extension.transform_from(stream)
        while piece := stream.read(min(_PIECE_BYTES, room + 1)):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                break
    except Exception as error:  # each library has errors of its own
        raise _corrupt(key, error) from error
    if room < 0:
        raise _corrupt(key, f"an item becomes longer than the {limit_nbytes} bytes that it may have")
    return b"".join(pieces)


def _corrupt(key: str, cause: str | BaseException) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "the transforms of a stored item cannot be undone",
        key=key,
        cause=cause,
        hint="restore the object from a copy, or load another checkpoint",
    )


def _unsupported(key: str, descriptor: str, cause: str | BaseException) -> UnsupportedFormatError:
    return UnsupportedFormatError(
        f"an item was stored with the extension {descriptor[:200]!r}, which is not available here",
        key=key,
        cause=cause,
        hint="install its library, or pass a registry in which it is registered",
    )
