"""A list of hostile archives of ``torch.save``, for values and for tensors that are loaded whole."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.format.items import load_item
from dcp_cloud.format.values import check_value

_MANY = 1_000_000
_PROTO = b"\x80\x02"
# Where NumPy 2 has its functions, and where older ones have them.
_CORE = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"


def archive(pickled: bytes, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Put a pickle where ``torch.save`` would."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", "3\n")
        made.writestr("archive/byteorder", "little")
        made.writestr("archive/data/0", bytes(28))
    return buffer.getvalue()


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return _name(module, name) + b"(" + b"".join(arguments) + b"tR"


class _Dtype:
    """Becomes a NumPy dtype with a state of the forger's."""

    def __init__(self, state: tuple[Any, ...], code: str = "V8", *, is_copy: bool = True) -> None:
        self._made, self._state = (code, False, is_copy), state

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, self._made, self._state


class _Array:
    """Becomes a NumPy array with a state of the forger's."""

    def __init__(self, *state: Any) -> None:
        self._state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr(__import__(_CORE, fromlist=["x"]), "_reconstruct"), (np.ndarray, (0,), b"b"), self._state  # noqa: B009


def _array(dtype: object, data: object, shape: tuple[int, ...] = (2,)) -> bytes:
    return archive(pickle.dumps(_Array(1, shape, dtype, False, data), protocol=2))


def _fields(kind: str, at: int) -> tuple[Any, ...]:
    return (3, "|", None, ("a",), {"a": (np.dtype(kind), at)}, 8, 8, 0)


def _tensor(*, key: str = "0", numel: int = 7, size: bytes = b"K\x07\x85", times: int = 1) -> bytes:
    identity = (
        b"(" + _text("storage") + _name("torch", "FloatStorage") + _text(key) + _text("cpu") + _number(numel) + b"tQ"
    )
    rest = b"K\0" + size + b"K\x01\x85\x89" + _call("collections", "OrderedDict")
    return (_name("torch._utils", "_rebuild_tensor_v2") + b"(" + identity + rest + b"tR") * times


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _two_directories() -> bytes:
    """Make an archive in which Python finds a small record and miniz another one, which swells."""
    honest = archive(_PROTO + b"N.")
    swelling = io.BytesIO()
    with zipfile.ZipFile(swelling, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", b"N" * (64 << 20))
        made.writestr("archive/version", "3\n")
    hidden = swelling.getvalue()
    end = hidden[-22:]
    hidden_start = struct.unpack_from("<I", end, 16)[0]
    with zipfile.ZipFile(io.BytesIO(honest)) as made:
        begin, size = made.start_dir, len(honest) - 22 - made.start_dir
    count = struct.unpack_from("<H", honest[-22:], 8)[0]
    # Readers that count from the end find the honest directory, those that believe the offset the other one.
    shift = hidden_start - begin
    filler = bytes(max(shift, 0))
    return (
        hidden[:-22]
        + filler
        + honest[:-22]
        + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, hidden_start, 0)
    )


_LAUGHS = _PROTO + b")q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40))
_ENCODED = _name("_codecs", "encode") + b"q\0" + _text("x" * _MANY) + b"q\x01" + _text("latin1") + b"q\x02\x86q\x03R"
VALUE_ATTACKS: Mapping[str, bytes] = MappingProxyType(
    {
        # bytes of the forger as pointers of Python, or beyond an array's own
        "an array of pointers": _array(_Dtype(_fields("O", 0)), struct.pack("<QQ", 0x41414141, 0x42424242)),
        "a field beyond the element": _array(
            _Dtype((3, "|", None, ("a",), {"a": (np.dtype("i8"), 1 << 20)}, 8, 1, 0)), bytes(16)
        ),
        "an array of objects": _array(np.dtype("O"), [1, 2]),
        "pointers in bytes": _array(np.dtype("O"), bytes(16)),
        "an array shorter than its shape": _array(np.dtype("i8"), bytes(16), shape=(1 << 40,)),
        "texts longer than they are": _array(_Dtype((3, "<", None, None, None, 1 << 30, 4, 8), "U1"), bytes(8)),
        "a dtype of all the process": archive(
            pickle.dumps(_Dtype((3, ">", None, None, None, -1, -1, 0), "f8", is_copy=False), protocol=2)
        ),
        "a scalar without its bytes": archive(
            _PROTO + _call(_CORE, "scalar", _call("numpy", "dtype", _text("f8"), b"\x89", b"\x88"), b"U\x01x") + b"."
        ),
        "an array without its bytes": archive(_PROTO + _call("numpy", "ndarray", _number(10**9), _text("O")) + b"."),
        # states for what has none
        "a state for a function": archive(_PROTO + _name("_codecs", "encode") + b"N}" + _text("a") + b"K\x01s\x86b."),
        "a state for a class": archive(_PROTO + _name("argparse", "Namespace") + b"}" + _text("a") + b"K\x01sb."),
        "slots of an object": archive(
            _PROTO + _name("argparse", "Namespace") + b")\x81N}" + _text("__class__") + b"K\x01s\x86b."
        ),
        "an array's state through a subclass": archive(
            _PROTO
            + _call(
                "torch._tensor",
                "_rebuild_from_type_v2",
                _name("numpy", "dtype"),
                _name("numpy", "dtype"),
                b"(" + _text("f8") + b"\x89\x88t",
                b"(K\x03" + _text("|") + b"NNNK\x08K\x08K\x00t",
            )
            + b"."
        ),
        # take the stack
        "a key of a million tuples": archive(_PROTO + b"}" + b")" + b"\x85" * _MANY + b"Ns."),
        # take time
        "tuples held twice as a key": archive(_LAUGHS + b"}h%cNs." % 40),
        "tuples held twice in a set": archive(_LAUGHS + _call("builtins", "set", b"]h%ca" % 40) + b"."),
        "one tuple in many sets": archive(
            _PROTO
            + b"("
            + b"K\1" * 100_000
            + b"tq\0]q\1h\0a("
            + (_name("builtins", "set") + b"h\1\x85R") * 100_000
            + b"t."
        ),
        "a fraction with an exponent": archive(_PROTO + _call("fractions", "Fraction", _text("1e999999999")) + b"."),
        # take memory
        "a list of a range": archive(
            _PROTO + _call("builtins", "list", _call("builtins", "range", _number(10**9))) + b"."
        ),
        "a set of a range": archive(
            _PROTO + _call("builtins", "set", _call("builtins", "range", _number(10**9))) + b"."
        ),
        "a bytearray of a number": archive(_PROTO + _call("builtins", "bytearray", _number(10**10)) + b"."),
        "bytes of a number": archive(_PROTO + _call("builtins", "bytes", _number(10**10)) + b"."),
        "a tensor of a number": archive(_PROTO + _call("torch", "FloatTensor", _number(10**10)) + b"."),
        "a storage of a number": archive(_PROTO + _call("torch.storage", "UntypedStorage", _number(10**10)) + b"."),
        "one text as a thousand bytes": archive(_PROTO + b"(" + _ENCODED + (b"h\0h\x03R" * 5000) + b"t."),
        "a path of one long part": archive(
            _PROTO + _name("pathlib", "PurePosixPath") + b"(" + _text("x" * _MANY) + b"q\0" + b"h\0" * 5000 + b"tR."
        ),
        "a quantised tensor of a shape": archive(
            _PROTO + _tensor(size=_number(10**12) + b"\x85").replace(b"_rebuild_tensor_v2", b"_rebuild_qtensor") + b"."
        ),
        "a tensor longer than its record": archive(_PROTO + _tensor(numel=10**9, size=_number(10**9) + b"\x85") + b"."),
        "a memo of gigabytes": archive(_PROTO + b"K\x01r\xff\xff\xff\x7f."),
        "two directories": _two_directories(),
        "a record that swells": archive(_PROTO + b"N" * (16 << 20) + b".", compression=zipfile.ZIP_DEFLATED),
        # lead out of the tensor
        "indices beyond a sparse tensor": _saved(
            torch.sparse_coo_tensor(torch.tensor([[0, 1 << 40]]), torch.ones(2), (4,), check_invariants=False)
        ),
        # hide behind another format, which nobody looks into
        "a pickle before the archive": _PROTO + b"N." + archive(_PROTO + b"N."),
    }
)


def attempt_value(data: bytes) -> str:
    """Look into a value as a load does; give the error's name."""
    try:
        check_value(data, key="run/x.distcp", label="'value'")
    except DcpCloudError as error:
        return type(error).__name__
    return "passed"


def attempt_item(data: bytes) -> str:
    """Load a tensor as a load does; give the error's name."""
    try:
        load_item(data, key="run/x.distcp")
    except DcpCloudError as error:
        return type(error).__name__
    return "loaded"
