"""Names of the objects of a checkpoint, and what ``.metadata`` records of each item beyond torch's own fields.

Below a checkpoint's prefix stand the data objects ``__{rank}_{index}.{save_id}.distcp`` and the commit ``.metadata``
(``__{rank}.metadata`` for each rank of a save without collectives). The names carry the id of the save, so two saves
never share an object and a data object is never written twice.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcp_cloud.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import _StorageInfo

METADATA_KEY = ".metadata"
DATA_SUFFIX = ".distcp"
BLOCK_BYTES = 4 * 1024 * 1024
"""Length of the blocks in which tensors are copied, sent and read."""
PAGE_BYTES = 256 * 1024
"""Length of the pages whose checksums are recorded, so that a read of part of a tensor can be verified.

A slice is read with the rest of the pages at its two ends: 256 KiB on average. The record takes 16 MiB for each TiB.
"""

_DATA_KEY = re.compile(r"^__(?P<rank>\d+)_(?P<index>\d+)\.(?P<save_id>[0-9a-f]{32})\.distcp$")
_RANK_METADATA_KEY = re.compile(r"^__(\d+)\.metadata$")
# Control characters, and halves of surrogate pairs, which cannot be encoded in a request.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# S3, GCS and Azure all take keys of up to 1024 bytes or characters.
_MAX_KEY_CHARS = 1024
_ATTRIBUTE = "dcp_cloud"
_VERSION = 2
# Of version 1, which did not record a length.
_VERSION_1_PAGE_BYTES = 4 * 1024 * 1024
_PAGE_LENGTHS = frozenset(4096 << n for n in range(11))


@dataclass(frozen=True, slots=True, kw_only=True)
class RawData:
    """Where the bare bytes of a tensor lie within its item, and how to verify them.

    Args:
        offset: Offset of the first byte from the start of the object, bytes.
        size_bytes: Length of the storage, bytes.
        strides: Strides in elements, or None for row-major.
        crc32: CRC-32 (zlib) of the bytes, or None for a format that records none.
        page_crc32: CRC-32 of each page, the last one shorter; empty if there is only one.
        page_bytes: Length of a page.
    """

    offset: int
    size_bytes: int
    strides: tuple[int, ...] | None
    crc32: int | None
    page_crc32: tuple[int, ...] = ()
    page_bytes: int = PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """One item of a checkpoint: where it is and how it was encoded.

    Args:
        key: Key of the data object relative to the checkpoint's prefix; confined below it.
        offset: Offset of the item in the object, bytes.
        size_bytes: Length of the item, bytes.
        transforms: Descriptors of the stream transforms to undo, in order.
        crc32: CRC-32 (zlib) of the item's stored bytes, if it was recorded.
        raw: The bare tensor bytes, for untransformed plain tensors that this package wrote.
    """

    key: str
    offset: int
    size_bytes: int
    transforms: tuple[str, ...] = ()
    crc32: int | None = None
    raw: RawData | None = None


def data_key(rank: int, index: int, save_id: str) -> str:
    """Name a data object.

    Args:
        rank: Rank in the process group of the save.
        index: Number of the object among those of this rank.
        save_id: 32 hexadecimal digits that no other save has.

    Returns:
        The key relative to the checkpoint's prefix.
    """
    return f"__{rank}_{index}.{save_id}{DATA_SUFFIX}"


def metadata_key(rank: int | None = None) -> str:
    """Name the commit object.

    Args:
        rank: Rank, for a save without collectives; None for the one commit of all ranks.

    Returns:
        The key relative to the checkpoint's prefix.
    """
    return METADATA_KEY if rank is None else f"__{rank}{METADATA_KEY}"


def is_data_key(key: str) -> bool:
    """Tell whether a key is one that :func:`data_key` makes."""
    return _DATA_KEY.match(key) is not None


def rank_of_metadata_key(key: str) -> int | None:
    """Read the rank out of a rank-local commit's name; None for any other name."""
    match = _RANK_METADATA_KEY.match(key)
    return int(match[1]) if match else None


def to_storage_info(item: StoredItem) -> _StorageInfo:
    """Make the record that goes into ``.metadata``.

    torch reads its own fields; everything else travels in one extra attribute that its readers ignore.

    Args:
        item: The stored item.

    Returns:
        torch's record with the extra attribute ``dcp_cloud``: a tuple of a version, the item's checksum and, for
        plain tensors, ``(raw offset, raw length, strides, crc32, page checksums as little-endian bytes, page length)``.
    """
    # Not at the top: names alone, which the command line lists, need no torch, and that takes seconds to import.
    from torch.distributed.checkpoint.filesystem import _StorageInfo  # noqa: PLC0415

    info = _StorageInfo(relative_path=item.key, offset=item.offset, length=item.size_bytes)
    if item.transforms:
        info.transform_descriptors = list(item.transforms)
    raw = item.raw
    packed = None
    if raw is not None:
        pages = struct.pack(f"<{len(raw.page_crc32)}I", *raw.page_crc32)
        packed = (raw.offset, raw.size_bytes, raw.strides, raw.crc32, pages, raw.page_bytes)
    setattr(info, _ATTRIBUTE, (_VERSION, item.crc32, packed))
    return info


def from_storage_info(info: _StorageInfo) -> StoredItem:
    """Read a record of ``.metadata``, trusting nothing in it.

    Args:
        info: torch's record, from this package or any other writer.

    Returns:
        The stored item. An extra attribute of a newer version is ignored: torch's fields suffice to read the item.

    Raises:
        CorruptCheckpointError: A field has the wrong type or range, or the path leaves the checkpoint's prefix.
    """
    key = _confined(getattr(info, "relative_path", None))
    offset = _natural(getattr(info, "offset", None), key, "offset")
    size_bytes = _natural(getattr(info, "length", None), key, "length")
    transforms = getattr(info, "transform_descriptors", None)
    transforms = () if transforms is None else transforms
    if not isinstance(transforms, (list, tuple)) or not all(isinstance(text, str) for text in transforms):
        raise _corrupt(key, "transform_descriptors are not a list of names")
    crc32, raw = _read_attribute(getattr(info, _ATTRIBUTE, None), key, offset, size_bytes)
    return StoredItem(key=key, offset=offset, size_bytes=size_bytes, transforms=tuple(transforms), crc32=crc32, raw=raw)


def _read_attribute(value: object, key: str, offset: int, size_bytes: int) -> tuple[int | None, RawData | None]:
    if not isinstance(value, tuple) or len(value) != 3 or type(value[0]) is not int:
        return None, None
    version, crc32, packed = value
    if version not in (1, _VERSION):
        return None, None
    crc = None if crc32 is None else _natural(crc32, key, "crc32", below=2**32)
    if packed is None:
        return crc, None
    if not isinstance(packed, tuple) or len(packed) != (5 if version == 1 else 6):
        raise _corrupt(key, "the record of raw bytes has another shape")
    raw_offset, raw_bytes, strides, raw_crc, pages, page = packed if version > 1 else (*packed, _VERSION_1_PAGE_BYTES)
    page_bytes = _natural(page, key, "page length")
    if page_bytes not in _PAGE_LENGTHS:
        raise _corrupt(key, "page length is out of range")
    start = _natural(raw_offset, key, "raw offset")
    length = _natural(raw_bytes, key, "raw length")
    if start < offset or start + length > offset + size_bytes:
        raise _corrupt(key, "the raw bytes lie outside of their item")
    if strides is not None:
        if not isinstance(strides, tuple):
            raise _corrupt(key, "strides are not a tuple")
        strides = tuple(_natural(stride, key, "stride") for stride in strides)
    # A format that records no checksum has none of its pages either.
    count = -(-length // page_bytes) if raw_crc is not None else 0
    if not isinstance(pages, bytes) or len(pages) != (4 * count if count > 1 else 0):
        raise _corrupt(key, "the page checksums do not fit the raw length")
    return crc, RawData(
        offset=start,
        size_bytes=length,
        strides=strides,
        crc32=None if raw_crc is None else _natural(raw_crc, key, "raw crc32", below=2**32),
        page_crc32=struct.unpack(f"<{len(pages) // 4}I", pages),
        page_bytes=page_bytes,
    )


def _confined(path: object) -> str:
    """Accept a relative path of plain segments only: the bucket's content must not choose what else is read."""
    if not isinstance(path, str) or not 0 < len(path) <= _MAX_KEY_CHARS:
        raise _corrupt(METADATA_KEY, "an item has no object name, or none that a store takes")
    fault = find_key_fault(path)
    if fault is not None:
        raise _corrupt(ascii(path), fault)
    return path


def find_key_fault(path: str) -> str | None:
    """Find out why a name from a bucket may not be used as a key below the checkpoint's prefix.

    Args:
        path: The name.

    Returns:
        What is wrong, or None if it is a relative path of plain segments.
    """
    segments = path.split("/")
    if "\\" in path or ":" in segments[0] or any(segment in ("", ".", "..") for segment in segments):
        return "an object name leaves the checkpoint's prefix"
    return "an object name has control characters" if _UNPRINTABLE.search(path) else None


def _natural(value: object, key: str, name: str, *, below: int = 2**63) -> int:
    if type(value) is not int:
        raise _corrupt(key, f"{name} is a {type(value).__name__}, not a number")
    if not 0 <= value < below:
        raise _corrupt(key, f"{name} is out of range")  # not shown: it may have millions of digits
    return value


def _corrupt(key: str, cause: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "the checkpoint's .metadata is damaged",
        key=key,
        cause=cause,
        hint="restore .metadata from a copy, or load another checkpoint",
    )
