"""The zip records that torch's archive writer makes, as pure arithmetic.

torch writes through miniz in its zip64 mode: every record is stored, sizes and checksum follow the data in a
descriptor, and an extra field ``FB`` pads the local header so that the data start at a multiple of the alignment. The
rules are those of ``PyTorchStreamWriter::writeRecord`` and ``getPadding`` in torch's
``caffe2/serialize/inline_container.cc`` and of miniz's ``mz_zip_writer_add_mem_ex_v2``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LOCAL_SIGNATURE = b"PK\x03\x04"
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"
ENTRY_SIGNATURE = b"PK\x01\x02"
END_SIGNATURE = b"PK\x05\x06"
END64_SIGNATURE = b"PK\x06\x06"
LOCATOR_SIGNATURE = b"PK\x06\x07"
# signature, version needed, flags, method, time, date, crc, packed and full size, length of name and of extra field
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
# signature, made by, version needed, flags, method, time, date, crc, packed and full size, length of name, of extra
# field and of comment, disk, two kinds of attributes, offset of the local header
ENTRY = struct.Struct("<4s6H3I5H2I")
# signature, size of the rest, made by, version needed, two disk numbers, two counts, size and offset of the directory
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
END = struct.Struct("<4s4H2IH")

FULL = 0xFFFFFFFF
"""From here on a 32-bit field is set to this value and the true one stands in a zip64 extra field."""
DESCRIPTOR_FLAG = 0x0008
_UTF8_FLAG = 0x0800
_MADE_BY_UNIX_3_0 = 0x031E
_ZIP64_NEEDED = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the central directory says of a record.

    Args:
        name: The record's full name.
        size_bytes: Length of its data, bytes.
        crc32: CRC-32 of its data.
        header_offset: Where its local header starts.
    """

    name: bytes
    size_bytes: int
    crc32: int
    header_offset: int


def local_header(name: bytes, size_bytes: int, offset: int, alignment: int) -> bytes:
    """Make all that stands before a record's data.

    Args:
        name: The record's full name.
        size_bytes: Length of its data, bytes.
        offset: Where the header starts in the archive.
        alignment: The data shall start at a multiple of this.

    Returns:
        The local header, the name and the extra fields.
    """
    sizes = struct.pack("<QQ", size_bytes, 0) if size_bytes >= FULL else b""
    zip64 = _zip64_field(sizes, offset)
    bare = offset + LOCAL_HEADER.size + len(name) + len(zip64) + 4
    padding = -bare % alignment
    extra = zip64 + b"FB" + struct.pack("<H", padding & 0xFFFF) + b"Z" * padding
    flags = _UTF8_FLAG | (DESCRIPTOR_FLAG if size_bytes else 0)
    fixed = LOCAL_HEADER.pack(LOCAL_SIGNATURE, 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra) & 0xFFFF)
    return fixed + name + extra


def descriptor(size_bytes: int, crc32: int, offset: int) -> bytes:
    """Make what stands after a record's data.

    Args:
        size_bytes: Length of the data, bytes.
        crc32: CRC-32 of the data.
        offset: Where the record's local header starts.

    Returns:
        The data descriptor; nothing for an empty record.
    """
    if not size_bytes:
        return b""
    wide = size_bytes >= FULL or offset >= FULL
    return struct.pack("<4sIQQ" if wide else "<4sIII", DESCRIPTOR_SIGNATURE, crc32, size_bytes, size_bytes)


def directory_entry(entry: Entry, crc32: int) -> bytes:
    """Make a record's entry in the central directory.

    Args:
        entry: What to say of the record, but for its checksum.
        crc32: CRC-32 of its data.

    Returns:
        The entry with its name and extra field.
    """
    size, offset = entry.size_bytes, entry.header_offset
    sizes = struct.pack("<QQ", size, size) if size >= FULL else b""
    extra = _zip64_field(sizes, offset)
    flags = _UTF8_FLAG | (DESCRIPTOR_FLAG if size else 0)
    short_size, short_offset = min(size, FULL), min(offset, FULL)
    lengths = (len(entry.name), len(extra), 0)
    fixed = ENTRY.pack(
        ENTRY_SIGNATURE, 0, 0, flags, 0, 0, 0, crc32, short_size, short_size, *lengths, 0, 0, 0, short_offset
    )
    return fixed + entry.name + extra


def directory_end(count: int, size_bytes: int, offset: int) -> bytes:
    """Make the end of the archive: zip64 end record, its locator, end record.

    Args:
        count: Number of records.
        size_bytes: Length of the central directory, bytes.
        offset: Where the central directory starts.

    Returns:
        The last 98 bytes of an archive.
    """
    made = (_MADE_BY_UNIX_3_0, _ZIP64_NEEDED)
    end64 = END64.pack(END64_SIGNATURE, END64.size - 12, *made, 0, 0, count, count, size_bytes, offset)
    locator = LOCATOR.pack(LOCATOR_SIGNATURE, 0, offset + size_bytes, 1)
    end = END.pack(END_SIGNATURE, 0, 0, count, count, size_bytes, min(offset, FULL), 0)
    return end64 + locator + end


def read_directory(directory: bytes) -> Iterator[Entry]:
    """Read the entries of a central directory.

    Args:
        directory: The directory, whole.

    Yields:
        Its entries in order.

    Raises:
        ValueError: It is no central directory of stored records.
    """
    position = 0
    while position < len(directory):
        try:
            fields = ENTRY.unpack_from(directory, position)
        except struct.error:
            raise ValueError("an entry is cut off") from None
        signature, method, crc32, packed, size = fields[0], fields[4], *fields[7:10]
        name_bytes, extra_bytes, comment_bytes, offset = *fields[10:13], fields[16]
        start = position + ENTRY.size
        position = start + name_bytes + extra_bytes + comment_bytes
        if signature != ENTRY_SIGNATURE or method != 0 or packed != size or position > len(directory):
            raise ValueError("no entry of a stored record")
        extra = directory[start + name_bytes : start + name_bytes + extra_bytes]
        wide = iter(_zip64_values(extra))
        try:
            if size == FULL:
                size, _ = next(wide), next(wide)
            if offset == FULL:
                offset = next(wide)
        except StopIteration:
            raise ValueError("a zip64 value is missing") from None
        name = directory[start : start + name_bytes]
        yield Entry(name=name, size_bytes=size, crc32=crc32, header_offset=offset)


def _zip64_field(sizes: bytes, offset: int) -> bytes:
    body = sizes + (struct.pack("<Q", offset) if offset >= FULL else b"")
    return struct.pack("<HH", 1, len(body)) + body if body else b""


def _zip64_values(extra: bytes) -> tuple[int, ...]:
    if len(extra) < 4:
        return ()
    tag, size = struct.unpack_from("<HH", extra)
    if tag != 1 or size % 8 or size > len(extra) - 4:
        return ()
    return struct.unpack_from(f"<{size // 8}Q", extra, 4)
