"""Looking into the values that are no tensors before a load planner opens them.

torch's default planner opens them with ``torch.load(weights_only=False)``, which runs whatever code their pickle holds.
A value that consists of plain objects passes at once. Any other is opened as ``weights_only=True`` would, with a few
more harmless types allowed; what cannot be opened that way is not handed to the planner.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import fractions
import io
import pathlib
import pickle
import types
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dcp_cloud.errors import CorruptCheckpointError, UnsafeCheckpointError
from dcp_cloud.format.items import require_stored
from dcp_cloud.format.pickle_scan import scan_pickle
from dcp_cloud.format.ziplayout import LOCAL_SIGNATURE

# Types whose making and whose state cannot do harm; torch allows its own, OrderedDict, Counter, set and the like.
_HARMLESS = (
    argparse.Namespace,
    collections.deque,
    collections.defaultdict,
    dt.date,
    dt.datetime,
    dt.time,
    dt.timedelta,
    dt.timezone,
    decimal.Decimal,
    fractions.Fraction,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    types.SimpleNamespace,
    uuid.UUID,
    np.ndarray,
    np.dtype,
)
# builtins that are types, as factories of defaultdict and as values
_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)


def is_archive(data: bytes) -> bool:
    """Tell whether bytes begin as all that ``torch.save`` writes."""
    return data.startswith(LOCAL_SIGNATURE)


def check_value(
    data: bytes, *, key: str, label: str, allow_global: Callable[[str, str], object | None] | None = None
) -> None:
    """See that opening a value without restriction runs no code of its writer.

    Args:
        data: The value as ``torch.save`` wrote it.
        key: Key of the object, for messages.
        label: The value's name, for messages.
        allow_global: Allows further names: gets module and name, returns the object or None.

    Raises:
        UnsafeCheckpointError: It names something that is not known to be harmless.
        CorruptCheckpointError: It is damaged.
    """
    if is_archive(data):
        require_stored(data, key=key)
    if _is_plain(data):
        return
    allowed: dict[str, Any] = dict(_harmless())
    try:
        _open(data, list(allowed.values()))
        return
    except pickle.UnpicklingError as error:
        names = sorted(set(_unsafe_names(data)) - allowed.keys())
        refused = []
        for name in names:
            module, _, attribute = name.rpartition(".")
            found = allow_global(module, attribute) if allow_global is not None else None
            if found is None:
                refused.append(name)
            allowed[name] = found
        cause: BaseException = error
    except Exception as error:  # whatever torch trips over in foreign bytes
        raise _corrupt(label, key, error) from error
    if refused or not names:
        raise UnsafeCheckpointError(
            f"the value {label} would do more than describe itself when it is opened",
            key=key,
            cause=f"it uses {', '.join(refused[:5])}" if refused else cause,
            hint="if you trust the checkpoint, allow the types with allow_global or torch.serialization."
            "add_safe_globals, or everything with unsafe_values=True",
        ) from cause
    try:
        _open(data, list(allowed.values()))
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"the value {label} cannot be opened safely, not even with the types that were allowed",
            key=key,
            cause=error,
            hint="if you trust the checkpoint, open everything with unsafe_values=True",
        ) from error
    except Exception as error:
        raise _corrupt(label, key, error) from error


class _NoNames(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        raise pickle.UnpicklingError(f"{module_name}.{global_name}")


def _is_plain(data: bytes) -> bool:
    """Tell whether a value names nothing at all, as numbers, texts and lists of them; that is quickly seen."""
    if not is_archive(data):
        return False
    try:
        # The reader that torch.load uses: another one might find another record of that name.
        pickled = torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")
        scan_pickle(pickled)
        _NoNames(io.BytesIO(pickled)).load()
    except Exception:  # looked into with more care, which finds out what it is
        return False
    return True


def _open(data: bytes, allowed: list[Any]) -> None:
    with torch.serialization.safe_globals(allowed):
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _harmless() -> dict[str, Any]:
    named: dict[str, Any] = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*_HARMLESS, *_BUILTINS)}
    multiarray = getattr(np, "_core", None) or np.core
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named[f"{module}._reconstruct"] = (multiarray.multiarray._reconstruct, f"{module}._reconstruct")
        named[f"{module}.scalar"] = (multiarray.multiarray.scalar, f"{module}.scalar")
    dtypes = getattr(np, "dtypes", None)
    for name in dir(dtypes):
        if name.endswith("DType"):
            named[f"numpy.dtypes.{name}"] = getattr(dtypes, name)
    return named


def _unsafe_names(data: bytes) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except Exception:  # of an older format, or too damaged to tell
        return []


def _corrupt(label: str, key: str, cause: BaseException) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"the value {label} is damaged",
        key=key,
        cause=cause,
        hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
    )
