"""What a failure looks like on a terminal, and the exit code that scripts get."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from rich.text import Text

from dcp_cloud.cli.session import Session
from dcp_cloud.cli.text import safe
from dcp_cloud.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    DcpCloudError,
    NotFoundError,
    PermissionDeniedError,
)


class ExitCode(IntEnum):
    """Exit codes of all commands; a part of the interface."""

    OK = 0
    DAMAGED = 1
    USAGE = 2
    NOT_FOUND = 3
    PERMISSION = 4
    STORE = 5
    INTERNAL = 70
    INTERRUPTED = 130


MEANINGS: Mapping[ExitCode, str] = MappingProxyType(
    {
        ExitCode.OK: "done, and nothing is wrong",
        ExitCode.DAMAGED: "the checkpoint is damaged or incomplete; diff: they differ; doctor: a check failed",
        ExitCode.USAGE: "wrong use or configuration; nothing was sent",
        ExitCode.NOT_FOUND: "no such bucket, or no checkpoint there",
        ExitCode.PERMISSION: "no credentials, wrong ones, or not allowed",
        ExitCode.STORE: "the store or the network failed",
        ExitCode.INTERNAL: "a defect of dcp-cloud; please report it",
        ExitCode.INTERRUPTED: "interrupted by Ctrl-C, or not confirmed",
    }
)


def exit_code_of(error: DcpCloudError) -> ExitCode:
    """Choose the exit code for an error, by its type.

    Args:
        error: Any error of the package.

    Returns:
        The code.
    """
    if isinstance(error, ConfigError):
        return ExitCode.USAGE
    if isinstance(error, (NotFoundError, CheckpointNotFoundError)):
        return ExitCode.NOT_FOUND
    if isinstance(error, PermissionDeniedError):
        return ExitCode.PERMISSION
    return ExitCode.DAMAGED if isinstance(error, CheckpointError) else ExitCode.STORE


def show_error(session: Session, error: DcpCloudError) -> ExitCode:
    """Tell the user what failed, why, and what to do next.

    Args:
        session: Where to.
        error: What failed.

    Returns:
        The exit code.
    """
    code = exit_code_of(error)
    if session.json:
        session.emit(
            "error",
            {
                "error": {
                    "type": type(error).__name__,
                    "message": error.message,
                    "key": error.key,
                    "cause": error.cause,
                    "hint": error.hint,
                    "exit_code": int(code),
                }
            },
        )
    if session.verbose:
        session.err.print(Text("".join(traceback.format_exception(error)).rstrip(), "dim"), soft_wrap=True)
    text = Text.assemble(("error: ", "bold red"), (safe(error.message), "red"))
    for title, value in (("where", error.key), ("why", error.cause), ("next", error.hint)):
        if value:
            text.append(f"\n  {title:<6}", "dim")
            text.append(safe(value), "bold" if title == "next" else "")
    session.err.print(text, soft_wrap=True)
    return code
