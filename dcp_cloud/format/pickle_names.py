"""The names that ``.metadata`` may use, and what each of them means while it is read.

The list is the union found in the metadata of all of torch's writers (plain, FSDP1, FSDP2, DTensor, ShardedTensor,
rank-local, torch 2.2 and older). A pickle that holds a real class or enum could set attributes on it, and so change
the process for everybody. It therefore gets stand-ins, made for this one load: functions that build a value from
checked arguments, and subclasses whose instances take a bounded state and become the real thing at the end.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

_METADATA = "torch.distributed.checkpoint.metadata"
# Where torch 2.2 and older kept the properties of tensors.
_OLD_METADATA = "torch.distributed._shard.sharded_tensor.metadata"
_RECORDS: dict[tuple[str, str], type] = {
    **{
        (_METADATA, real.__name__): real
        for real in (
            dcp_metadata.Metadata,
            dcp_metadata.MetadataIndex,
            dcp_metadata.StorageMeta,
            dcp_metadata.TensorProperties,
            dcp_metadata.TensorStorageMetadata,
            dcp_metadata.BytesStorageMetadata,
            dcp_metadata.ChunkStorageMetadata,
        )
    },
    (_OLD_METADATA, "TensorProperties"): dcp_metadata.TensorProperties,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_DTYPES = {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}

# torch tensors have at most 64 dimensions; records have less fields than this; no path is longer on any system.
_MAX_DIMENSIONS = 64
_MAX_FIELDS = 16
_MAX_PATH_CHARS = 4096
# No tensor has more chunks.
_MAX_INDEX = 2**60


class NameNotAllowedError(Exception):
    """A pickle asks for a name that is not on the list."""


class Names:
    """The names of one load.

    Args:
        extra_allowed: Asked for names that are not on the list; None refuses.
    """

    def __init__(self, extra_allowed: Callable[[str, str], object | None] | None = None) -> None:
        self._extra_allowed = extra_allowed
        self._made: list[tuple[type, list[Any]]] = []
        self._known: dict[tuple[str, str], object] = {
            ("torch", "Size"): _size_maker(),
            ("torch.serialization", "_get_layout"): _layout_maker(),
            ("collections", "OrderedDict"): _ordered_dict_maker(),
            (_METADATA, "_MEM_FORMAT_ENCODING"): _encoding_maker(),
            (_OLD_METADATA, "MEM_FORMAT_ENCODING"): _encoding_maker(),
            **{(module, name): _path_maker() for module in ("pathlib", "pathlib._local") for name in _PATHS},
            **{place: self._stand_in(real) for place, real in _RECORDS.items()},
        }

    def find(self, module: str, name: str) -> object:
        """Give what a name means; module and name must match exactly, so dotted paths lead nowhere.

        Args:
            module: The module's name in the pickle.
            name: The name in it.

        Returns:
            A stand-in, or what the caller's hook allows.

        Raises:
            NameNotAllowedError: Nobody allows the name.
        """
        place = (module, name)
        found = self._known.get(place) or _DTYPES.get(place)
        if found is None and self._extra_allowed is not None:
            found = self._extra_allowed(module, name)
        if found is None:
            raise NameNotAllowedError(f"it uses {module}.{name}")
        return found

    def settle(self) -> None:
        """Turn the instances of stand-ins into instances of the real classes, after the load."""
        for real, instances in self._made:
            for instance in instances:
                object.__setattr__(instance, "__class__", real)

    def _stand_in(self, real: type) -> type:
        made: list[Any] = []
        self._made.append((real, made))
        own_setstate = getattr(real, "__setstate__", None)
        known = len(dataclasses.fields(real))
        required = frozenset(
            field.name
            for field in dataclasses.fields(real)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )

        def setstate(self: Any, state: Any) -> None:  # noqa: ANN401 - whatever a pickle gives
            if type(state) is not dict or len(state) > _MAX_FIELDS or not required <= state.keys():
                raise TypeError(f"a {real.__name__} has other fields")
            if real is dcp_metadata.MetadataIndex:
                _check_index(state)
            self.__dict__.update(state)
            made.append(self)

        def delegate(self: Any, state: Any) -> None:  # noqa: ANN401
            if type(state) is not tuple or len(state) > _MAX_FIELDS:
                raise TypeError(f"a {real.__name__} has other fields")
            # A newer torch may have put values at the end (2.15: strides); an older one takes just those it knows.
            own_setstate(self, state[:known])  # type: ignore[misc]  # only used where there is one
            made.append(self)

        def new(cls: type, *_: Any) -> Any:  # noqa: ANN401
            instance: Any = object.__new__(cls)
            made.append(instance)
            return instance

        def refuse(self: Any, *_: Any) -> None:  # noqa: ANN401
            raise TypeError(f"a {type(self).__name__} is made by a call")  # writers make instances without calling

        namespace: dict[str, Any] = {
            "__init__": refuse,
            "__setstate__": setstate if own_setstate is None else delegate,
        }
        if not dataclasses.fields(real):  # without fields there is no state, and nobody calls __setstate__
            namespace["__new__"] = new
        if real is not dcp_metadata.MetadataIndex:
            namespace["__hash__"] = None  # only indices are keys; hashing anything else would follow a forger's fields
        return type(real.__name__, (real,), namespace)


def _check_index(state: dict[str, Any]) -> None:
    """See that a key can be hashed at once: what is in it was chosen by whoever wrote the pickle."""
    offset, index = state.get("offset"), state.get("index")
    if (
        type(state["fqn"]) is not str
        or type(offset) not in (torch.Size, type(None))
        or not (index is None or (type(index) is int and 0 <= index < _MAX_INDEX))
    ):
        raise TypeError("a MetadataIndex has fields of other types")


def _size_maker() -> Callable[..., torch.Size]:
    def size(values: tuple[int, ...] | list[int] = ()) -> torch.Size:
        if type(values) not in (tuple, list) or len(values) > _MAX_DIMENSIONS:
            raise TypeError("a torch.Size has other arguments")
        made = torch.Size(values)
        if made and min(made) < 0:
            raise ValueError("a torch.Size is negative")
        return made

    return size


def _layout_maker() -> Callable[[str], torch.layout]:
    def layout(name: str) -> torch.layout:
        if type(name) is not str:
            raise TypeError("a layout has another name")
        return _LAYOUTS[name]

    return layout


def _ordered_dict_maker() -> Callable[[], OrderedDict[Any, Any]]:
    def ordered_dict() -> OrderedDict[Any, Any]:  # without arguments: a large one could be copied again and again
        return OrderedDict()

    return ordered_dict


def _path_maker() -> Callable[..., PurePosixPath]:
    def path(*parts: str) -> _Path:
        if sum(len(part) + 1 for part in parts) > _MAX_PATH_CHARS:
            raise ValueError("a path is too long")
        return _Path(*parts)

    return path


class _Path(PurePosixPath):
    """A path that takes no state from a pickle: its hash would follow a forger's parts."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None:
        raise TypeError("a path has a state")

    def __reduce__(self) -> tuple[type[PurePosixPath], tuple[str, ...]]:
        return PurePosixPath, self.parts


class _Encoding:
    """Compares like the member of torch's enum that has its value; the member itself could be written to."""

    __slots__ = ("_value",)

    def __init__(self, value: int) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enum) and other.value == self._value

    __hash__ = None  # type: ignore[assignment]  # nothing is looked up by it, and a forger's value would be followed

    def __setstate__(self, _: object) -> None:
        raise TypeError("a memory format has a state")


def _encoding_maker() -> Callable[[int], _Encoding]:
    def encoding(value: int) -> _Encoding:
        if type(value) is not int:
            raise TypeError("a memory format has another number")
        return _Encoding(value)

    return encoding
