"""``.metadata``: torch's pickle of a checkpoint's table of contents, written as torch does and read with distrust."""

from __future__ import annotations

import contextlib
import gc
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFormatError
from dcp_cloud.format.pickle_names import NameNotAllowedError, Names
from dcp_cloud.format.pickle_scan import RefusedInstructionError, scan_pickle

ExtraAllowed: TypeAlias = Callable[[str, str], object | None]
"""Tells, by module and name, what else a pickle may use; None refuses."""

# The protocol of torch's FileSystemWriter: readable by every Python that torch supports.
_PROTOCOL = 4
# Places of a list whose values are empty dicts have no name.
_MAX_EMPTY_PLACES = 1000
# And lists within lists have them, too: this many for each place that has a name.
_PLACES_PER_PART = 16
# Nobody nests state dicts deeper.
_MAX_PATH_PARTS = 100
_PART_TYPES = frozenset({str, int})
_PLAIN_TYPES = frozenset(
    {dict, OrderedDict, list, tuple, torch.Size, set, frozenset, str, bytes, int, float, bool, type(None)}
)
_SEAL = b"\n# dcp_cloud crc32 "
_SEAL_BYTES = len(_SEAL) + 8


def dump_metadata(metadata: Metadata) -> bytes:
    """Make the bytes of ``.metadata``.

    Args:
        metadata: The table of contents, with ``storage_data`` set.

    Returns:
        A pickle that torch's FileSystemReader loads, and a seal: a checksum of it, after its last instruction, where
        unpicklers do not look.

    Raises:
        UnsupportedFormatError: A planner put something into ``planner_data`` that cannot be pickled.
    """
    try:
        with _gc_paused():
            data = pickle.dumps(metadata, protocol=_PROTOCOL)
    except Exception as error:  # pickling runs code of the objects themselves
        raise UnsupportedFormatError(
            "the checkpoint's metadata cannot be pickled",
            cause=error,
            hint="look for an unpicklable object in what the save planner puts into planner_data",
        ) from error
    return b"".join((data, _SEAL, b"%08x" % crc32(data)))


def load_metadata(
    data: bytes | memoryview, *, key: str, extra_allowed: ExtraAllowed | None = None, unsafe: bool = False
) -> Metadata:
    """Read ``.metadata`` without letting it run code, allocate at will or change this process.

    Args:
        data: The whole object; its length should be checked before it is fetched.
        key: Its key, for messages.
        extra_allowed: Further names that the pickle may use, for planners that keep types of their own in it.
        unsafe: Unpickle without any restriction. Only for objects from a trusted source.

    Returns:
        The table of contents. The types of its parts were checked, the numbers in ``storage_data`` were not: see
        :func:`dcp_cloud.format.layout.from_storage_info`.

    Raises:
        UnsafeCheckpointError: The pickle uses a name or an instruction that no checkpoint needs.
        CorruptCheckpointError: The bytes are damaged, or hold something else.
    """
    try:
        with _gc_paused():
            pickled = _unsealed(data)
            found = pickle.loads(pickled) if unsafe else _load(pickled, extra_allowed)  # noqa: S301 - asked for by name
            return _checked(found, may_be_custom=extra_allowed is not None, is_trusted=unsafe)
    except (NameNotAllowedError, RefusedInstructionError) as error:
        raise UnsafeCheckpointError(
            "the checkpoint's metadata wants to do more than describe a checkpoint",
            key=key,
            cause=str(error),
            hint="if you trust it, allow the name with allow_global, or everything with unsafe_metadata=True",
        ) from error
    except Exception as error:  # an unpickler fed with foreign bytes raises anything, MemoryError included
        raise CorruptCheckpointError(
            "the checkpoint's metadata is damaged",
            key=key,
            cause=error,
            hint="restore it from a copy, or load another checkpoint",
        ) from error


def _unsealed(data: bytes | memoryview) -> memoryview:
    """Give the pickle without its seal, which must hold; torch's own writers, and older ones, make none."""
    view = memoryview(data)
    pickled, seal = view[:-_SEAL_BYTES], bytes(view[-_SEAL_BYTES:])
    if not seal.startswith(_SEAL):
        return view
    found = b"%08x" % crc32(pickled)
    if seal[len(_SEAL) :] != found:
        raise ValueError(f"its CRC-32 is {found.decode()}, {ascii(seal[len(_SEAL) :])[2:-1]} was recorded")
    return pickled


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes | memoryview, names: Names) -> None:
        super().__init__(io.BytesIO(data))
        self._names = names

    def find_class(self, module_name: str, global_name: str, /) -> object:
        return self._names.find(module_name, global_name)


def _load(data: memoryview, extra_allowed: ExtraAllowed | None) -> object:
    if scan_pickle(data) != len(data):  # by a damaged seal, or by an end that damage has made
        raise ValueError("bytes follow the end of the pickle")
    names = Names(extra_allowed)
    found = _Unpickler(data, names).load()
    names.settle()
    return found


def _checked(found: object, *, may_be_custom: bool, is_trusted: bool) -> Metadata:
    """Check the types that torch and this package rely on; foreign ones would only fail later and less clearly."""
    if not isinstance(found, Metadata):
        raise TypeError(f"it holds a {type(found).__name__}, not a table of contents")
    fields = vars(found)
    contents = fields.get("state_dict_metadata")
    if not isinstance(contents, dict) or not all(type(name) is str for name in contents):
        raise TypeError("state_dict_metadata is no dict of names")
    for name, entry in contents.items():
        if isinstance(entry, TensorStorageMetadata):
            _check_tensor(name, entry)
        elif type(entry) is not BytesStorageMetadata:
            raise TypeError(f"{name!r} is described by a {type(entry).__name__}")
    storage = fields.get("storage_data")
    if not isinstance(storage, dict) or set(map(type, storage)) - {MetadataIndex}:
        raise TypeError("storage_data is no dict of items")
    if not isinstance(fields.get("storage_meta"), (StorageMeta, type(None))):
        raise TypeError("storage_meta has another type")
    if not is_trusted:
        _check_paths(fields.get("planner_data"), may_be_custom=may_be_custom)
    return found


def _check_tensor(name: str, entry: TensorStorageMetadata) -> None:
    fields = vars(entry)
    size, chunks = fields.get("size"), fields.get("chunks")
    if not isinstance(fields.get("properties"), TensorProperties) or not isinstance(size, torch.Size):
        raise TypeError(f"the size or the properties of {name!r} have another type")
    if not isinstance(chunks, list) or set(map(type, chunks)) - {ChunkStorageMetadata}:
        raise TypeError(f"the chunks of {name!r} are no list of chunks")


def _check_paths(planner_data: object, *, may_be_custom: bool) -> None:
    """Check the places of values in the state dict, as torch's planner notes them.

    torch walks whatever is like a list of texts and numbers, and makes lists as long as the numbers say. In an honest
    state dict nearly every place up to a number is taken.

    Args:
        planner_data: What the save planner noted.
        may_be_custom: Whether the caller allows types of a planner of its own; their objects are left alone.
    """
    if planner_data is None or (may_be_custom and _is_custom(planner_data)):
        return
    if type(planner_data) is not dict:
        raise TypeError(f"planner_data is a {type(planner_data).__name__}")
    most = len(planner_data) + _MAX_EMPTY_PLACES
    ends: dict[tuple[object, ...], int] = {}
    parts = 0
    for path in planner_data.values():
        if may_be_custom and _is_custom(path):
            continue
        if type(path) is not tuple or len(path) > _MAX_PATH_PARTS or not _PART_TYPES.issuperset(map(type, path)):
            raise TypeError("planner_data holds something else than paths of texts and numbers")
        for depth, part in enumerate(path):
            if type(part) is int:
                if not 0 <= part < most:
                    raise ValueError(f"planner_data of {len(planner_data)} values tells of a longer list")
                parts += 1
                prefix = path[:depth]
                ends[prefix] = max(ends.get(prefix, 0), part + 1)
    if sum(ends.values()) > most + _PLACES_PER_PART * parts:
        raise ValueError(f"planner_data of {len(planner_data)} values tells of lists with {sum(ends.values())} places")


def _is_custom(value: object) -> bool:
    """Tell whether an object is of a type that only the caller's hook can have let in."""
    return type(value) not in _PLAIN_TYPES


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause the cyclic collector, which would look again and again at millions of new objects that all live.

    Unpickling 36 MB took 4.0 s with it and 0.63 s without.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
