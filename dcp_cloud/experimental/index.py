"""What lies where in a file that ``torch.save`` wrote, found out from its last bytes."""

from __future__ import annotations

from dataclasses import dataclass

from dcp_cloud.errors import CorruptCheckpointError, UnsupportedFormatError
from dcp_cloud.experimental.emit import STAMP
from dcp_cloud.experimental.rendezvous import Stamp
from dcp_cloud.format import ziplayout
from dcp_cloud.format.ziplayout import Entry
from dcp_cloud.transfer.download import Check, Target
from dcp_cloud.transfer.retrying import RetryingStore

# Holds the directory of some five hundred records; a longer one is fetched with a second request.
_TAIL_BYTES = 64 * 1024
_END_BYTES = ziplayout.END64.size + ziplayout.LOCATOR.size + ziplayout.END.size
_PICKLE = b"data.pkl"
_DAMAGED_HINT = "load another checkpoint, or restore the file from a copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of the archive.

    Args:
        name: Its full name.
        header_offset: Where its local header starts.
        start: Where its bytes start.
        nbytes: How many they are.
        crc32: Their CRC-32, or None if the file holds no checksums.
    """

    name: bytes
    header_offset: int
    start: int
    nbytes: int
    crc32: int | None

    @property
    def label(self) -> str:
        """The name as text."""
        return self.name.decode("utf-8", "replace")

    def check_header(self, key: str, memory: memoryview) -> None:
        """See that the record's own header says what was concluded from the directory.

        Args:
            key: Key of the object, for messages.
            memory: The bytes from ``header_offset`` to ``start``.

        Raises:
            CorruptCheckpointError: It says something else.
        """
        signature, *_, name_bytes, extra_bytes = ziplayout.LOCAL_HEADER.unpack_from(memory)
        name = bytes(memory[ziplayout.LOCAL_HEADER.size :][:name_bytes])
        length = ziplayout.LOCAL_HEADER.size + name_bytes + extra_bytes
        if signature != ziplayout.LOCAL_SIGNATURE or name != self.name or length != memory.nbytes:
            raise _damaged(key, f"the header of {self.label!r}")

    def header_target(self, key: str) -> Target:
        """Make the read that checks the header; it lies beside the record's bytes, so it costs no request."""
        return Target(
            key=key,
            start=self.header_offset,
            nbytes=self.start - self.header_offset,
            convert=lambda memory: self.check_header(key, memory),
            label=self.label,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIndex:
    """The records of one file.

    Args:
        key: Key of the object.
        etag: Version of the object that all this is true of.
        records: The records by name, without the archive's own.
        stamp: The save that the file belongs to; None if another program wrote it.
    """

    key: str
    etag: str
    records: dict[bytes, Record]
    stamp: Stamp | None

    def storage(self, name: str, nbytes: int) -> Record:
        """Find the bytes of a storage.

        Args:
            name: Its name in the pickle.
            nbytes: Its length by the pickle.

        Returns:
            The record.

        Raises:
            CorruptCheckpointError: There is none, or its length is another.
        """
        record = self.records.get(f"data/{name}".encode())
        if record is None or record.nbytes != nbytes:
            raise _damaged(self.key, f"a tensor's {nbytes} bytes are not where its pickle says")
        return record


def read_index(store: RetryingStore, key: str) -> FileIndex:
    """Read the directory of a file.

    Args:
        store: Store rooted at the checkpoint, with retries.
        key: Key of the object.

    Returns:
        Its index.

    Raises:
        NotFoundError: There is no such object.
        UnsupportedFormatError: It is no zip archive of ``torch.save``.
        CorruptCheckpointError: The archive is damaged.
    """
    meta = store.head(key)
    size_bytes = meta.size_bytes
    if size_bytes < _END_BYTES:
        raise _damaged(key, f"it is {size_bytes} bytes long")
    tail = _read(store, key, size_bytes - min(size_bytes, _TAIL_BYTES), size_bytes, meta.etag)
    nbytes, start, count = _end(key, tail)
    if start + nbytes > size_bytes - ziplayout.END.size:
        raise _damaged(key, "its directory lies outside of it")
    if start < size_bytes - len(tail):
        tail = _read(store, key, start, size_bytes, meta.etag)
    at = start - (size_bytes - len(tail))
    try:
        entries = sorted(ziplayout.read_directory(tail[at : at + nbytes]), key=lambda entry: entry.header_offset)
    except ValueError as error:
        raise _damaged(key, str(error)) from error
    if len(entries) != count:
        raise _damaged(key, "its directory is cut off")
    records = _records(key, entries, start)
    return FileIndex(key=key, etag=meta.etag, records=records, stamp=_stamp(store, key, records, meta.etag))


def _read(store: RetryingStore, key: str, start: int, stop: int, etag: str) -> bytes:
    memory = bytearray(stop - start)
    store.get_range(key, start, [memoryview(memory)], if_match=etag)
    return bytes(memory)


def _end(key: str, tail: bytes) -> tuple[int, int, int]:
    """Read length and offset of the directory, and the number of its entries."""
    end64 = ziplayout.END64.unpack_from(tail, len(tail) - _END_BYTES)
    if end64[0] == ziplayout.END64_SIGNATURE:
        return end64[8], end64[9], end64[7]
    end = ziplayout.END.unpack_from(tail, len(tail) - ziplayout.END.size)
    if end[0] != ziplayout.END_SIGNATURE:
        raise UnsupportedFormatError(
            "the file is no archive of torch.save, or its end is missing",
            key=key,
            hint="files of torch before 1.6 have to be saved again; a file that was cut off has to be restored",
        )
    return end[5], end[6], end[4]


def _records(key: str, entries: list[Entry], directory_start: int) -> dict[bytes, Record]:
    pickles = [entry for entry in entries if entry.name.endswith(b"/" + _PICKLE)]
    if len(pickles) != 1:
        raise UnsupportedFormatError(
            "the archive is not one that torch.save wrote", key=key, cause="it has no data.pkl"
        )
    prefix = pickles[0].name[: -len(_PICKLE)]
    # The checksum of a pickle is never zero, unless checksums were switched off.
    has_checksums = pickles[0].crc32 != 0
    records: dict[bytes, Record] = {}
    stops = [entry.header_offset for entry in entries[1:]] + [directory_start]
    for entry, stop in zip(entries, stops, strict=True):
        # torch pads before the bytes, and writes nothing between them and the next record but a descriptor.
        start = stop - len(ziplayout.descriptor(entry.size_bytes, 0, entry.header_offset)) - entry.size_bytes
        if start < entry.header_offset + ziplayout.LOCAL_HEADER.size + len(entry.name):
            raise _damaged(key, "its records overlap")
        records[entry.name.removeprefix(prefix)] = Record(
            name=entry.name,
            header_offset=entry.header_offset,
            start=start,
            nbytes=entry.size_bytes,
            crc32=entry.crc32 if has_checksums else None,
        )
    return records


def _stamp(store: RetryingStore, key: str, records: dict[bytes, Record], etag: str) -> Stamp | None:
    record = records.get(STAMP)
    if record is None:
        return None
    if not 0 < record.nbytes <= _TAIL_BYTES:
        raise _damaged(key, "the note of its save has a length that none has")
    return Stamp.load(_read(store, key, record.start, record.start + record.nbytes, etag), key=key)


def checks_of(record: Record) -> tuple[Check, ...]:
    """Give the check of a record that is read in one piece.

    Args:
        record: The record.

    Returns:
        Its checksum, if it has one.
    """
    return () if record.crc32 is None else (Check(0, record.nbytes, record.crc32),)


def _damaged(key: str, cause: str) -> CorruptCheckpointError:
    return CorruptCheckpointError("the file of a rank is damaged", key=key, cause=cause, hint=_DAMAGED_HINT)
