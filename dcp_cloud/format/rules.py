"""What a value's pickle may do with each name that it uses.

A value is handed to torch's planner, which opens it without restriction; that a name is known is not enough then. NumPy
takes whatever layout it is told for the objects of an array, ``bytearray(n)`` makes n bytes of five, and a range
becomes a list of any length. The rules here stand in for the real things while an opening is rehearsed
(:mod:`dcp_cloud.format.rehearsal`): each looks at the arguments as the real one would get them, and gives back what
later instructions need to know of the result, which is made of no foreign bytes.

What a rule lets pass costs no more memory and time than the length of what was stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from dcp_cloud.format.standins import Arguments, Budget, Made, Name, RefusedUseError, Rule, Storage, Trusted

# Longer sizes than torch and NumPy take; more digits than Python reads in less than the square of their number.
_MAX_DIMENSIONS = 64
_MAX_DIGITS = 4300
_MAX_BITS = 16_384
_MAX_PATH_CHARS = 4096
_FRACTION = re.compile(r"-?[0-9]+(/[0-9]+)?")
# Whole numbers, floats, complex numbers, booleans, bytes, texts, times: nothing that holds pointers.
_DTYPE = re.compile(r"[biufcSUmM][0-9]{1,9}")
_LATIN = ("latin1", "latin-1")


class _Tensor(Made):
    __slots__ = ()


class _Items(Made):
    """A deque."""

    __slots__ = ()

    def append(self, item: object) -> None:
        """Take an item."""

    extend = append


class _Dict(dict[Any, Any]):
    """A dict of a type of its own, which may have attributes, as state dicts do."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        _check_attributes(state)


class Record:
    """An object that is made empty and then given attributes."""

    __slots__ = ()

    def __new__(cls, *arguments: object) -> Record:  # noqa: PYI034 - Self needs Python 3.11
        """Make it empty."""
        _require(not arguments)
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Look at the attributes."""
        _require(type(state) is dict)
        _check_attributes(state)


class _Uuid(Record):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        _require(type(state) is dict and state.keys() <= {"int", "is_safe"} and all(map(_is_int, state.values())))


class _Dtype(Made):
    __slots__ = ("_kind", "itemsize")

    def __init__(self, code: str) -> None:
        self._kind, self.itemsize = code[0], np.dtype(code).itemsize

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        """Let the byte order and the unit of times pass; no fields, no flags, no other length."""
        _require(type(state) is tuple and 8 <= len(state) <= 9)
        version, order, subarray, names, fields, itemsize, alignment, flags = state[:8]
        _require(_is_int(version) and type(order) is str and order in ("<", ">", "|", "="))
        _require(subarray is None and names is None and fields is None)
        # NumPy takes the length of texts from here.
        _require(type(itemsize) is int and (itemsize == self.itemsize or (itemsize == -1 and self._kind not in "SU")))
        # 8: the elements of texts are set to zero at the beginning
        _require(alignment in (-1, 1, 2, 4, 8, 16) and type(flags) is int and flags in (0, 8))
        if len(state) == 9 and state[8] is not None:
            _require(self._kind in "mM" and type(state[8]) is tuple and len(state[8]) == 2)
            metadata, unit = state[8]
            _require(metadata is None or metadata == {})
            _require(type(unit) is tuple and len(unit) == 4 and type(unit[0]) in (bytes, str) and len(unit[0]) < 10)
            _require(all(type(number) is int and 0 < number < 2**31 for number in unit[1:]))


class _Array(Made):
    __slots__ = ("_budget",)

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        """Let pass what has as many bytes as its shape says; an array of objects has a list in their place."""
        _require(type(state) is tuple and len(state) == 5)
        version, shape, dtype, is_fortran, data = state
        _require(_is_int(version) and _is_size(shape) and isinstance(dtype, _Dtype) and type(is_fortran) in (bool, int))
        _require(type(data) is bytes and len(data) == math.prod(shape) * dtype.itemsize)
        self._budget.spend(len(data))


def _require(is_honest: bool) -> None:  # noqa: FBT001 - reads as a sentence where it stands
    if not is_honest:
        raise RefusedUseError("it uses a type with arguments or a state that no writer gives it")


def _is_int(value: object) -> bool:
    return type(value) is int and value.bit_length() <= _MAX_BITS


def _is_size(value: object) -> bool:
    return (
        type(value) is tuple
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _check_attributes(state: Any) -> None:  # noqa: ANN401
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    for part in parts:
        _require(part is None or type(part) is dict)
        _require(all(type(name) is str and not name.startswith("__") for name in part or ()))


def _never(_: Budget, __: Arguments) -> object:
    raise RefusedUseError("it calls something that is only a value")


def _small(*kinds: type, most: int = 3) -> Rule:
    """Make the rule of types whose arguments are a few numbers, short texts and things already made."""

    def rule(_: Budget, arguments: Arguments) -> object:
        _require(len(arguments) <= most)
        for argument in arguments:
            _require(isinstance(argument, (Made, Trusted)) or type(argument) in kinds)
            _require(type(argument) is not int or _is_int(argument))
            _require(type(argument) not in (str, bytes) or len(argument) <= 100)
        return Made()

    return rule


def _set(budget: Budget, arguments: Arguments) -> object:
    if arguments:
        (elements,) = arguments
        budget.consume(elements, kind=list)
        budget.hash_all(elements)
    return Made()


def _counter(budget: Budget, arguments: Arguments) -> object:
    if arguments:
        (counts,) = arguments
        budget.consume(counts, kind=dict)
    return _Dict()


def _ordered_dict(_: Budget, arguments: Arguments) -> object:
    _require(not arguments)
    return _Dict()


def _default_dict(_: Budget, arguments: Arguments) -> object:
    _require(len(arguments) <= 1)
    _require(all(made is None or isinstance(made, (Name, type)) for made in arguments))
    return _Dict()


def _deque(_: Budget, arguments: Arguments) -> object:
    _require(len(arguments) <= 2 and arguments[:1] in ((), ((),)))
    _require(all(most is None or _is_int(most) for most in arguments[1:]))
    return _Items()


def _encode(budget: Budget, arguments: Arguments) -> bytes:
    text, encoding = arguments
    _require(type(text) is str and type(encoding) is str and encoding in _LATIN)
    budget.spend(len(text))
    encoded: bytes = text.encode("latin-1")
    return encoded


def _bytearray(budget: Budget, arguments: Arguments) -> object:
    if len(arguments) == 2:
        _encode(budget, arguments)
    elif arguments:
        (data,) = arguments
        _require(type(data) is bytes)  # a number would make as many bytes
        budget.spend(len(data))
    return Made()


def _bytes(_: Budget, arguments: Arguments) -> bytes:
    _require(not arguments)
    return b""


def _decimal(_: Budget, arguments: Arguments) -> object:
    (text,) = arguments
    _require(type(text) is str and len(text) <= _MAX_DIGITS)
    return Made()


def _fraction(_: Budget, arguments: Arguments) -> object:
    if len(arguments) == 1:  # Python 3.11 and older, in patches: "1/3"; an exponent would make a long number of it
        (text,) = arguments
        _require(type(text) is str and len(text) <= _MAX_DIGITS and _FRACTION.fullmatch(text) is not None)
    else:
        _require(len(arguments) == 2 and all(map(_is_int, arguments)))
    return Made()


def _path(_: Budget, arguments: Arguments) -> object:
    _require(all(type(part) is str for part in arguments))
    _require(sum(len(part) + 1 for part in arguments) <= _MAX_PATH_CHARS)
    return Made()


def _dtype(_: Budget, arguments: Arguments) -> object:
    _require(len(arguments) == 3)
    code, is_aligned, is_copy = arguments
    # Without a copy, the state that follows would change the dtype of the whole process.
    _require(type(code) is str and _DTYPE.fullmatch(code) is not None and not is_aligned and is_copy in (True, 1))
    return _Dtype(code)


def _reconstruct(budget: Budget, arguments: Arguments) -> object:
    kind, shape, code = arguments
    _require(isinstance(kind, Name) and kind.rule is _ndarray and shape == (0,) and code in (b"b", "b"))
    return _Array(budget)


def _ndarray(_: Budget, __: Arguments) -> object:
    raise RefusedUseError("it makes an array without its bytes")


def _scalar(_: Budget, arguments: Arguments) -> object:
    dtype, data = arguments
    _require(isinstance(dtype, _Dtype) and type(data) is bytes and len(data) == dtype.itemsize)
    return Made()


def _size(_: Budget, arguments: Arguments) -> object:
    _require(arguments == () or (len(arguments) == 1 and _is_size(arguments[0])))
    return Made()


def _tensor(_: Budget, arguments: Arguments) -> object:
    _require(all(len(part) <= _MAX_DIMENSIONS for part in arguments if type(part) in (tuple, list)))
    return _Tensor()


def _quantised(budget: Budget, arguments: Arguments) -> object:
    """Bound the memory that torch makes for the shape before it looks at the storage."""
    storage, _, shape = arguments[:3]
    _require(isinstance(storage, Storage) and _is_size(shape) and math.prod(shape) <= 4 * storage.nbytes)
    return _tensor(budget, arguments)


def _with_state(budget: Budget, arguments: Arguments) -> object:
    _require(len(arguments) == 4)
    _check_attributes(arguments[3])
    return _tensor(budget, arguments)


def _subclass(_: Budget, arguments: Arguments) -> object:
    function, kind, inner, state = arguments
    _require(isinstance(function, Name) or (isinstance(function, type) and issubclass(function, Trusted)))
    _require(type(inner) is tuple and isinstance(kind, (Name, type)))
    made = function(*inner)
    # Of anything else torch would set the state by that type's own method.
    _require(isinstance(made, (_Tensor, Trusted)))
    if isinstance(kind, Name):
        _check_attributes(state)
    return made


_STORAGES = {
    **dict.fromkeys("Bool Byte Char QInt8 QUInt8 QUInt4x2 QUInt2x4 Untyped".split(), 1),  # noqa: SIM905
    **dict.fromkeys("Short Half BFloat16".split(), 2),  # noqa: SIM905
    **dict.fromkeys("Int Float QInt32".split(), 4),  # noqa: SIM905
    **dict.fromkeys("Long Double ComplexFloat".split(), 8),  # noqa: SIM905
    "ComplexDouble": 16,
}
STORAGES: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        (module, f"{name}Storage"): itemsize
        for name, itemsize in _STORAGES.items()
        for module in ("torch", "torch.storage")
    }
)
"""The bytes of an element, by the type of its storage."""

RECORDS: Mapping[tuple[str, str], type] = MappingProxyType(
    {
        ("argparse", "Namespace"): Record,
        ("types", "SimpleNamespace"): Record,
        ("uuid", "UUID"): _Uuid,
    }
)
"""Types that are made empty."""

SPARSE = ("torch._utils", "_rebuild_sparse_tensor")
"""torch does not check the indices of a sparse tensor unless it is told to."""

_CONSTANTS = (torch.dtype, torch.qscheme, torch.memory_format)
RULES: Mapping[tuple[str, str], Rule] = MappingProxyType(
    {
        **{("builtins", name): _never for name in "bool dict float int list str tuple".split()},  # noqa: SIM905
        ("builtins", "set"): _set,
        ("builtins", "frozenset"): _set,
        ("builtins", "bytearray"): _bytearray,
        ("builtins", "bytes"): _bytes,
        ("builtins", "complex"): _small(float, int, most=2),
        ("builtins", "range"): _small(int),
        ("builtins", "slice"): _small(int, float, str, type(None)),
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "Counter"): _counter,
        ("collections", "defaultdict"): _default_dict,
        ("collections", "deque"): _deque,
        ("datetime", "date"): _small(bytes, str, most=1),
        **{("datetime", name): _small(bytes, str, type(None), most=2) for name in ("datetime", "time")},
        ("datetime", "timedelta"): _small(int),
        ("datetime", "timezone"): _small(str, most=2),
        ("decimal", "Decimal"): _decimal,
        ("fractions", "Fraction"): _fraction,
        **{
            (module, name): _path for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")
        },
        ("numpy", "dtype"): _dtype,
        ("numpy", "ndarray"): _ndarray,
        **{
            (f"numpy.{core}.multiarray", name): rule
            for core in ("core", "_core")
            for name, rule in (("_reconstruct", _reconstruct), ("scalar", _scalar))
        },
        ("torch", "Size"): _size,
        ("torch", "device"): _small(str, int, most=2),
        ("torch.serialization", "_get_layout"): _small(str, most=1),
        ("torch", "Tensor"): _never,
        ("torch.nn.parameter", "Parameter"): _never,
        **{
            ("torch._utils", f"_rebuild_{name}"): _tensor
            for name in (
                "tensor",
                "tensor_v2",
                "tensor_v3",
                "parameter",
                "meta_tensor_no_storage",
                "wrapper_subclass",
                "device_tensor_from_numpy",
                "device_tensor_from_cpu_tensor",
            )
        },
        SPARSE: _tensor,
        ("torch._utils", "_rebuild_parameter_with_state"): _with_state,
        ("torch._utils", "_rebuild_qtensor"): _quantised,
        ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
        **{("torch", name): _never for name, value in vars(torch).items() if isinstance(value, _CONSTANTS)},
    }
)
"""The rule for each name that any value may use."""
