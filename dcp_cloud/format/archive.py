"""The bytes that ``torch.save`` would write for one tensor, without touching the tensor.

An item is a header, the tensor's own memory and a trailer. The header follows from dtype, shape and strides; the
trailer needs the checksum of the memory besides. What the installed torch puts around the data (records, their order
and contents, versions) is read once from a tiny archive that it wrote itself, and the emitter then proves on a few
samples that it makes the same bytes. If it does not, it declines, and the caller falls back to ``torch.save``.
"""

from __future__ import annotations

import io
import math
import pickle
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from dcp_cloud.format import ziplayout
from dcp_cloud.format.tensor_pickle import pickled_tensor
from dcp_cloud.format.ziplayout import Entry

_PREFIX = b"archive/"
_PICKLE = b"archive/data.pkl"
_DATA = b"archive/data/0"
_ID = b"archive/.data/serialization_id"
_ID_BYTES = 40
_HASH_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """All of a tensor's item but the tensor's bytes.

    Args:
        header: What stands before the raw bytes.
        raw_nbytes: Length of the raw bytes.
        trailer_nbytes: Length of what stands after them.
        strides: Strides in elements, or None for row-major.
        is_plain: Whether the raw bytes in the order of the strides are the values themselves: no storage offset,
            neither the conjugate nor the negative bit set.
        tail: The trailer without its checksums.
    """

    header: bytes = field(repr=False)
    raw_nbytes: int
    trailer_nbytes: int
    strides: tuple[int, ...] | None
    is_plain: bool
    tail: _Tail = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Length of the whole item."""
        return len(self.header) + self.raw_nbytes + self.trailer_nbytes

    def trailer(self, crc32: int) -> bytes:
        """Make what stands after the raw bytes.

        Args:
            crc32: CRC-32 (zlib) of the raw bytes.

        Returns:
            The rest of the item, ``trailer_nbytes`` long.
        """
        return self.tail.render(crc32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """What the installed torch writes around the data, in its order."""

    before: tuple[tuple[bytes, bytes], ...]
    after: tuple[tuple[bytes, bytes], ...]
    name_hash: bytes
    alignment: int
    compute_crc32: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tail:
    """The trailer with everything in place that does not depend on the checksum.

    ``records`` are the ones after the data: local header, directory entry and content of each.
    """

    raw: Entry
    records: tuple[tuple[bytes, Entry, bytes], ...]
    directory_before: bytes
    end: bytes
    crc_hash: int
    name_hash: bytes
    compute_crc32: bool

    def render(self, crc32: int) -> bytes:
        raw = self.raw
        crc = crc32 if self.compute_crc32 and raw.size_bytes else 0
        # miniz returns before it reports the checksum of an empty record, so torch does not hash it in.
        crc_hash = _hash_combine(self.crc_hash, crc) if raw.size_bytes else self.crc_hash
        pieces = [ziplayout.descriptor(raw.size_bytes, crc, raw.header_offset)]
        directory = [self.directory_before, ziplayout.directory_entry(raw, crc)]
        for header, entry, fixed in self.records:
            content = self.name_hash + b"%020d" % crc_hash if entry.name == _ID else fixed
            content_crc = zlib.crc32(content) if self.compute_crc32 else 0
            crc_hash = _hash_combine(crc_hash, content_crc)
            pieces += (header, content, ziplayout.descriptor(len(content), content_crc, entry.header_offset))
            directory.append(ziplayout.directory_entry(entry, content_crc))
        return b"".join([*pieces, *directory, self.end])


def tensor_record(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    conj: bool = False,
    neg: bool = False,
) -> TensorRecord | None:
    """Describe the item of a plain CPU tensor whose storage is as long as the tensor itself.

    Args:
        dtype: The tensor's dtype.
        shape: Its sizes.
        strides: Its strides, in elements.
        offset: Its storage offset, in elements.
        conj: Whether its conjugate bit is set.
        neg: Whether its negative bit is set.

    Returns:
        The record, or None when torch cannot save this dtype or writes archives that this emitter does not know.
    """
    return _record(dtype, tuple(shape), tuple(strides), offset, conj, neg, *_settings_in_force())


@lru_cache(maxsize=1024)
def _record(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    conj: bool,  # noqa: FBT001 - positional, because it is a cache key
    neg: bool,  # noqa: FBT001
    alignment: int,
    compute_crc32: bool,  # noqa: FBT001
) -> TensorRecord | None:
    style = _style(alignment, compute_crc32)
    if style is None:
        return None
    try:
        return _build(style, dtype, shape, strides, offset, conj=conj, neg=neg)
    except (KeyError, AttributeError, RuntimeError, pickle.PicklingError):  # torch has no way to save this dtype
        return None


def _settings_in_force() -> tuple[int, bool]:
    """Read the settings of ``torch.save`` that change bytes: alignment in bytes, and whether checksums are stored."""
    try:
        from torch.utils.serialization import config  # noqa: PLC0415 - torch 2.6 has no such module
    except ImportError:
        return 64, torch.serialization.get_crc32_options()
    return config.save.storage_alignment, config.save.compute_crc32


@lru_cache(maxsize=16)
def _style(alignment: int, compute_crc32: bool) -> _Style | None:  # noqa: FBT001 - positional, a cache key
    """Learn torch's archive from one that it made, and prove it on samples; None if the proof fails."""
    try:
        archive = _saved(torch.zeros(1, device="cpu"))
        style = _learn_style(archive, alignment=alignment, compute_crc32=compute_crc32)
        proved = all(_proves(style, sample) for sample in _samples())
    except Exception:  # whatever a future torch does here, torch.save itself remains the way out
        return None
    return style if proved else None


def _learn_style(archive: bytes, *, alignment: int, compute_crc32: bool) -> _Style:
    """Read from an archive of one tensor what torch writes besides the tensor.

    Args:
        archive: What ``torch.save`` made of any plain tensor of less than 4 GiB.
        alignment: The alignment in force when it did, bytes.
        compute_crc32: Whether it stored checksums.

    Returns:
        The style of archives.

    Raises:
        ValueError: The archive is not of a known kind.
    """
    count, size, offset = ziplayout.END.unpack_from(archive, len(archive) - ziplayout.END.size)[4:7]
    entries = list(ziplayout.read_directory(archive[offset : offset + size]))
    names = [entry.name for entry in entries]
    if len(entries) != count or names[0] != _PICKLE or _DATA not in names or not names[-1].startswith(_PREFIX):
        raise ValueError("the archive holds other records")
    constant = [(entry.name, _content(archive, entry)) for entry in entries]
    split = names.index(_DATA)
    identity = dict(constant).get(_ID, b"")
    return _Style(
        before=tuple(constant[1:split]),
        after=tuple(constant[split + 1 :]),
        name_hash=identity[: _ID_BYTES // 2],
        alignment=alignment,
        compute_crc32=compute_crc32,
    )


def _content(archive: bytes, entry: Entry) -> bytes:
    name_bytes, extra_bytes = ziplayout.LOCAL_HEADER.unpack_from(archive, entry.header_offset)[-2:]
    start = entry.header_offset + ziplayout.LOCAL_HEADER.size + name_bytes + extra_bytes
    return archive[start : start + entry.size_bytes]


def _saved(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def _samples() -> tuple[torch.Tensor, ...]:
    return (
        torch.arange(6, dtype=torch.float32, device="cpu").reshape(2, 3).t(),
        torch.zeros(3, dtype=torch.complex64, device="cpu").conj(),
        torch.tensor(7, dtype=torch.uint16, device="cpu"),
        torch.empty(0, dtype=torch.bfloat16, device="cpu"),
    )


def _proves(style: _Style, tensor: torch.Tensor) -> bool:
    record = _build(style, tensor.dtype, tuple(tensor.shape), tensor.stride(), 0, conj=tensor.is_conj(), neg=False)
    saved = _saved(tensor)
    raw = saved[len(record.header) : len(record.header) + record.raw_nbytes]
    return record.header + raw + record.trailer(zlib.crc32(raw)) == saved


def _build(
    style: _Style,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    first: int,
    *,
    conj: bool,
    neg: bool,
) -> TensorRecord:
    raw_nbytes = math.prod(shape) * dtype.itemsize
    header, entries, crc_hash = [], [], 0
    offset = 0
    for name, content in ((_PICKLE, pickled_tensor(dtype, shape, strides, first, conj=conj, neg=neg)), *style.before):
        crc = zlib.crc32(content) if style.compute_crc32 else 0
        crc_hash = _hash_combine(crc_hash, crc)
        entries.append(Entry(name=name, size_bytes=len(content), crc32=crc, header_offset=offset))
        lead = ziplayout.local_header(name, len(content), offset, style.alignment)
        header += [lead, content, ziplayout.descriptor(len(content), crc, offset)]
        offset += sum(map(len, header[-3:]))
    header.append(ziplayout.local_header(_DATA, raw_nbytes, offset, style.alignment))
    tail = _tail(style, entries, Entry(name=_DATA, size_bytes=raw_nbytes, crc32=0, header_offset=offset), crc_hash)
    return TensorRecord(
        header=b"".join(header),
        raw_nbytes=raw_nbytes,
        trailer_nbytes=len(tail.render(0)),
        strides=None if is_row_major(shape, strides) else strides,
        is_plain=not (conj or neg or (first and raw_nbytes)),
        tail=tail,
    )


def _tail(style: _Style, before: list[Entry], raw: Entry, crc_hash: int) -> _Tail:
    offset = raw.header_offset
    offset += len(ziplayout.local_header(_DATA, raw.size_bytes, offset, style.alignment)) + raw.size_bytes
    offset += len(ziplayout.descriptor(raw.size_bytes, 0, raw.header_offset))
    records = []
    for name, content in style.after:
        header = ziplayout.local_header(name, len(content), offset, style.alignment)
        entry = Entry(name=name, size_bytes=len(content), crc32=0, header_offset=offset)
        records.append((header, entry, content))
        offset += len(header) + len(content) + len(ziplayout.descriptor(len(content), 0, offset))
    directory = b"".join(ziplayout.directory_entry(entry, entry.crc32) for entry in before)
    size = len(directory) + sum(len(ziplayout.directory_entry(entry, 0)) for entry in (raw, *(r[1] for r in records)))
    return _Tail(
        raw=raw,
        records=tuple(records),
        directory_before=directory,
        end=ziplayout.directory_end(len(before) + 1 + len(records), size, offset),
        crc_hash=crc_hash,
        name_hash=style.name_hash,
        compute_crc32=style.compute_crc32,
    )


def is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether elements stand in row-major order; strides of sizes 0 and 1 do not matter.

    Args:
        shape: Sizes.
        strides: Strides in elements, as many.

    Returns:
        True for the order of a contiguous tensor.
    """
    if 0 in shape:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _hash_combine(seed: int, value: int) -> int:
    """``c10::hash_combine`` on 64 bits; torch joins the checksums of all records with it."""
    return seed ^ ((value + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _HASH_MASK)
