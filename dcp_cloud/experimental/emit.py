"""The bytes of ``torch.save`` for a whole state dict, appended to an upload without copying the tensors.

torch pickles the state dict and decides what goes into the archive; it is given, in place of its own archive writer, an
object that turns each record into spans. Checksums are computed where parts are sent, and the directory, which holds
them, is made last.
"""

from __future__ import annotations

import pickle
import uuid
import zlib
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from dcp_cloud.checkpoint.staging import Kept
from dcp_cloud.errors import DcpCloudError, UnsupportedFormatError
from dcp_cloud.format import ziplayout
from dcp_cloud.format.ziplayout import Entry
from dcp_cloud.transfer.budget import Account
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import ObjectUpload

_PREFIX = b"archive/"
STAMP = b".dcp_cloud"
"""Name of the record, unknown to torch, that says which save a file belongs to."""
# torch 2.6 stores no record that says how it aligns.
_DEFAULT_ALIGNMENT = 64
# kProducedFileFormatVersion of torch's caffe2/serialize/versions.h since 2020.
_VERSION = b"3\n"
# Records up to this length are joined with what stands around them.
_JOIN_BYTES = 64 * 1024

Checksum: TypeAlias = Callable[[], int]


class Sink(Protocol):
    """What an archive is appended to."""

    @property
    def size_bytes(self) -> int:
        """Bytes appended so far."""
        ...

    @property
    def open_bytes(self) -> int:
        """Bytes appended that are not under way yet."""
        ...

    def append(self, span: Span) -> None:
        """Add bytes at the end."""
        ...


def estimate_state_bytes(state_dict: Any) -> int:  # noqa: ANN401 - any nesting of anything
    """Guess how long a state dict's file will be, for choosing the length of parts.

    Args:
        state_dict: What will be saved.

    Returns:
        Bytes of the tensors that can be seen without pickling it.
    """
    leaves = [leaf.to_local() if isinstance(leaf, DTensor) else leaf for leaf in tree_leaves(state_dict)]
    plain = [leaf for leaf in leaves if type(leaf) in (torch.Tensor, torch.nn.Parameter)]
    storages = [leaf.untyped_storage() for leaf in plain if leaf.layout is torch.strided]
    # What is shared is saved once, and whole even if only a view of it is in the state dict.
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values()) + 1024 * (len(leaves) + 1)


def emit_state(state_dict: Any, upload: ObjectUpload, budget: Account, *, stamp: bytes) -> None:  # noqa: ANN401
    """Append a state dict to an object as ``torch.save`` would write it.

    Args:
        state_dict: Anything that ``torch.save`` can save.
        upload: The object.
        budget: Bounds the copies that are made of an accelerator's memory.
        stamp: Content of the record that says which save the file belongs to.

    Raises:
        UnsupportedFormatError: ``torch.save`` cannot save it.
    """
    archive = Archive(upload, budget)
    pickle_state(state_dict, archive, key=upload.key)
    archive.write_record(STAMP.decode(), stamp, len(stamp))
    archive.end()


def pickle_state(state_dict: Any, archive: Archive, *, key: str) -> None:  # noqa: ANN401
    """Let torch put a state dict into an archive; all that is left to do is to end it.

    Args:
        state_dict: Anything that ``torch.save`` can save.
        archive: The archive.
        key: Key of the object, for messages.

    Raises:
        UnsupportedFormatError: ``torch.save`` cannot save it.
    """
    try:
        torch.serialization._save(  # type: ignore[no-untyped-call]
            state_dict, archive, pickle, torch.serialization.DEFAULT_PROTOCOL, _disable_byteorder_record=False
        )
    except DcpCloudError:
        raise
    except Exception as error:  # pickling runs code of the objects themselves
        raise UnsupportedFormatError(
            "the state dict cannot be saved",
            key=key,
            cause=error,
            hint="torch.save cannot save it either; look for locks, lambdas, open files or tensors without data in it",
        ) from error
    archive.write_record("version", _VERSION, len(_VERSION))
    # torch derives it from names and checksums; all that it serves for is to be different.
    archive.write_record(".data/serialization_id", str(uuid.uuid4().int).zfill(40), 40)


class Archive:
    """Stands in for torch's ``PyTorchFileWriter``.

    Args:
        upload: The object that is appended to.
        budget: Bounds the copies that are made of an accelerator's memory; None where there are no such copies.
    """

    def __init__(self, upload: Sink, budget: Account | None) -> None:
        self._upload = upload
        # Where there is an accelerator, torch may hand over a copy, and does not say whether it is one.
        self._budget = budget if torch.accelerator.is_available() else None
        self._alignment = _DEFAULT_ALIGNMENT
        self._entries: list[tuple[Entry, Checksum]] = []

    def write_record(self, name: str, data: Any, nbytes: int) -> None:  # noqa: ANN401, ARG002 - text, bytes or a storage
        """Append a record (called by torch).

        Args:
            name: Its name in the archive.
            data: Text, bytes, or a storage in host memory.
            nbytes: Its length.
        """
        if name == ".storage_alignment":
            self._alignment = int(data)
        content = data.encode() if isinstance(data, str) else data
        full = _PREFIX + name.encode()
        if isinstance(content, bytes):
            self._append_small(full, content)
        else:
            self.append_storage(full, content)

    def write_record_metadata(self, name: str, nbytes: int) -> None:
        """Refuse to leave the data out (called by torch within ``torch.serialization.skip_data``)."""
        raise UnsupportedFormatError(
            f"{name} of {nbytes} bytes would be left out", hint="save outside of torch.serialization.skip_data"
        )

    def end(self) -> None:
        """Append the directory."""
        entries, start = self._entries, self._upload.size_bytes
        nbytes = sum(len(ziplayout.directory_entry(entry, 0)) for entry, _ in entries)
        end = ziplayout.directory_end(len(entries), nbytes, start)

        def make() -> memoryview:
            directory = (ziplayout.directory_entry(entry, checksum()) for entry, checksum in entries)
            return memoryview(b"".join([*directory, end]))

        self._upload.append(Span(nbytes + len(end), Kept(make)))

    def _append_small(self, name: bytes, content: bytes) -> None:
        offset, crc = self._upload.size_bytes, zlib.crc32(content)
        header = ziplayout.local_header(name, len(content), offset, self._alignment)
        descriptor = ziplayout.descriptor(len(content), crc, offset)
        self._note(name, len(content), lambda: crc)
        self._upload.append(Span.of(header + content + descriptor))

    def append_storage(self, name: bytes, storage: torch.UntypedStorage) -> None:
        """Append the bytes of a storage.

        Args:
            name: The record's full name.
            storage: The storage, in host memory.
        """
        memory = _memory(storage)
        if memory.nbytes <= _JOIN_BYTES:
            self._append_small(name, bytes(memory))
            return
        if self._budget is not None:
            self._budget.acquire(memory.nbytes, own_bytes=self._upload.open_bytes)
        data = Span.of(memory, on_sent=None if self._budget is None else self._budget.release)
        self.append_record(name, memory.nbytes, lambda: self._upload.append(data), data.crc32)

    def append_record(self, name: bytes, nbytes: int, append: Callable[[], None], checksum: Checksum) -> None:
        """Append a record whose bytes are appended by somebody else.

        Args:
            name: Its full name.
            nbytes: Its length.
            append: Appends them.
            checksum: Gives their CRC-32 when they have been sent.
        """
        offset = self._upload.size_bytes
        header = ziplayout.local_header(name, nbytes, offset, self._alignment)
        descriptor = Kept(lambda: memoryview(ziplayout.descriptor(nbytes, checksum(), offset)))
        self._note(name, nbytes, checksum)
        self._upload.append(Span.of(header))
        append()
        self._upload.append(Span(len(ziplayout.descriptor(nbytes, 0, offset)), descriptor))

    def _note(self, name: bytes, nbytes: int, checksum: Checksum) -> None:
        entry = Entry(name=name, size_bytes=nbytes, crc32=0, header_offset=self._upload.size_bytes)
        self._entries.append((entry, checksum))


def _memory(storage: torch.UntypedStorage) -> memoryview:
    raw = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return memoryview(raw.numpy())  # type: ignore[arg-type]  # arrays are buffers
