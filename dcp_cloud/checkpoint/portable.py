"""Errors that reach the other ranks, whoever raised them.

torch gathers the errors of all ranks as pickles. One that cannot be pickled, or not be read again, breaks that
exchange: one rank fails with something else, the others wait until the process group gives up. Errors of this package
always pickle; those of planners, hooks and of the values themselves may not.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import TypeVar

from typing_extensions import ParamSpec

from dcp_cloud.errors import CheckpointError

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


def portable_errors(method: Callable[ParamsT, ResultT]) -> Callable[ParamsT, ResultT]:
    """Let a step that torch takes on every rank raise nothing but what can be sent to the others.

    Args:
        method: The step. Its signature stays visible: torch looks there for a parameter that is called ``kwargs``.

    Returns:
        The step; instead of an error that does not survive pickling it raises a :class:`CheckpointError` that tells it.
    """

    @functools.wraps(method)
    def step(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            if _pickles(error):
                raise
            raise CheckpointError(f"{method.__name__} failed", cause=_describable(error)) from error

    return step


def _pickles(error: BaseException) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))  # noqa: S301 - what was an object just now
    except Exception:  # whatever it is: its own code runs here
        return False


def _describable(error: BaseException) -> BaseException | str:
    """Give the error, or only its name if not even its text can be had."""
    try:
        str(error)
    except Exception:
        return type(error).__name__
    return error
