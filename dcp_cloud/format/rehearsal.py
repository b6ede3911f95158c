"""Rehearsing the opening of what ``torch.save`` wrote, without making anything that it describes.

The same unpickler as in the real opening follows the same instructions; in place of each name stands a rule of
:mod:`dcp_cloud.format.rules`, and in place of each storage its length. What passes can be opened by anybody: no code
of its writer is run, and memory, stack and time stay within its length.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickle
from collections.abc import Callable, Collection
from typing import Any

import torch

from dcp_cloud.format.pickle_scan import RefusedInstructionError, scan_pickle
from dcp_cloud.format.rules import RECORDS, RULES, STORAGES
from dcp_cloud.format.standins import Budget, Name, RefusedUseError, Storage, StorageKind, Trusted
from dcp_cloud.format.ziplayout import LOCAL_SIGNATURE

# torch never lets a pickle use these, whatever was allowed.
_BLOCKED = frozenset({"sys", "os", "posix", "nt"})


class RefusedError(ValueError):
    """The archive must not be opened."""


def is_archive(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether bytes begin as all that ``torch.save`` writes."""
    return bytes(data[: len(LOCAL_SIGNATURE)]) == LOCAL_SIGNATURE


def rehearse(
    data: bytes | bytearray | memoryview,
    *,
    allow_global: Callable[[str, str], object | None] | None = None,
    refused: Collection[tuple[str, str]] = (),
) -> None:
    """See that opening an archive does no harm.

    Args:
        data: The archive, whose records were checked: it does not swell.
        allow_global: Allows further names: gets module and name, returns None to refuse.
        refused: Names that are refused although there is a rule for them.

    Raises:
        RefusedError: It must not be opened.
        Exception: It is damaged; torch and the unpickler raise many types.
    """
    if not is_archive(data):
        raise RefusedError("it is no archive of torch.save")  # nobody looks into the pickles of older formats
    # The reader that torch.load uses: another one might find another record of that name.
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    pickled = reader.get_record("data.pkl")
    try:
        scan_pickle(pickled, may_have_storages=True)
    except RefusedInstructionError as error:
        raise RefusedError(str(error)) from error
    rehearsal = _Rehearsal(pickled, reader, len(data), allow_global, refused)
    failure: Exception | None = None
    try:
        rehearsal.load()
    except Exception as error:  # what is not known is not followed, and may be the reason
        failure = error
    if rehearsal.unknown:
        raise RefusedError(f"it uses {', '.join(sorted(rehearsal.unknown)[:5])}") from failure
    if isinstance(failure, RefusedUseError):
        raise RefusedError(str(failure)) from failure
    if failure is not None:
        raise failure


class _Rehearsal(pickle.Unpickler):
    def __init__(
        self,
        pickled: bytes,
        reader: Any,  # noqa: ANN401 - torch has no type for it
        archive_nbytes: int,
        allow_global: Callable[[str, str], object | None] | None,
        refused: Collection[tuple[str, str]],
    ) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")  # as torch.load
        self._reader = reader
        self._left_nbytes = archive_nbytes
        self._allow_global = allow_global
        self._refused = refused
        self._budget = Budget(len(pickled))
        self._names: dict[tuple[str, str], object] = {}
        self._record_nbytes: dict[str, int] = {}
        self._safe_names: frozenset[str] | None = None
        self.unknown: set[str] = set()

    def find_class(self, module_name: str, global_name: str, /) -> object:
        # torch.save writes the names of Python 2, and the unpickler turns them back.
        place = _compat_pickle.NAME_MAPPING.get((module_name, global_name))
        if place is None:
            place = (_compat_pickle.IMPORT_MAPPING.get(module_name, module_name), global_name)
        found = self._names.get(place)
        if found is None:
            found = self._names[place] = self._find(place)
        return found

    def _find(self, place: tuple[str, str]) -> object:
        if place in STORAGES:
            return StorageKind(STORAGES[place])
        if place in RECORDS:
            return RECORDS[place]
        rule = RULES.get(place)
        if rule is not None and place not in self._refused:
            return Name(".".join(place), rule, self._budget)
        if not self._is_allowed(*place):
            self.unknown.add(".".join(place))
        return type("_Trusted", (Trusted,), {})

    def _is_allowed(self, module: str, name: str) -> bool:
        if module in _BLOCKED:
            return False
        if self._allow_global is not None and self._allow_global(module, name) is not None:
            return True
        if self._safe_names is None:
            self._safe_names = frozenset(map(_full_name, torch.serialization.get_safe_globals()))
        return f"{module}.{name}" in self._safe_names

    def persistent_load(self, pid: Any, /) -> Storage:  # noqa: ANN401 - whatever a pickle gives
        if type(pid) is not tuple or len(pid) != 5:
            raise RefusedUseError("it asks for something else than a storage")
        what, kind, key, location, numel = pid
        if what != "storage" or not isinstance(kind, StorageKind) or {type(key), type(location)} != {str}:
            raise RefusedUseError("it asks for something else than a storage")
        if key not in self._record_nbytes:
            # Two names may mean one record, of which torch makes a copy each.
            nbytes = self._record_nbytes[key] = _record_nbytes(self._reader, f"data/{key}")
            self._left_nbytes -= nbytes
        if (
            self._left_nbytes < 0
            or type(numel) is not int
            or not 0 <= numel * kind.itemsize <= self._record_nbytes[key]
        ):
            raise RefusedUseError("it asks for longer storages than there are")
        return Storage(numel * kind.itemsize)


def _record_nbytes(reader: Any, name: str) -> int:  # noqa: ANN401
    if hasattr(reader, "get_record_size"):
        return int(reader.get_record_size(name))
    return len(reader.get_record(name))  # older than torch 2.7, which do not compare the length themselves


def _full_name(allowed: Any) -> str:  # noqa: ANN401 - a callable, or one with its name
    return allowed[1] if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"
