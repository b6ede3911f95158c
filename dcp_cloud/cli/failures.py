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
    OUTPUT = 74
    INTERRUPTED = 130
    READER_LEFT = 141


MEANINGS: Mapping[ExitCode, str] = MappingProxyType(
    {
        ExitCode.OK: "done, and nothing is wrong",
        ExitCode.DAMAGED: "the checkpoint is damaged or incomplete; diff: they differ; doctor: a check failed",
        ExitCode.USAGE: "wrong use or configuration; nothing was sent",
        ExitCode.NOT_FOUND: "no such bucket, or no checkpoint there",
        ExitCode.PERMISSION: "no credentials, wrong ones, or not allowed",
        ExitCode.STORE: "the store or the network failed",
        ExitCode.INTERNAL: "a defect of dcp-cloud; please report it",
        ExitCode.OUTPUT: "standard output could not be written; what was to be done may be done",
        ExitCode.INTERRUPTED: "interrupted by Ctrl-C, or not confirmed",
        ExitCode.READER_LEFT: "whoever read standard output has left (| head)",
    }
)


class NotConfirmedError(Exception):
    """Somebody was asked and did not say yes. No error of the package: only the command line asks."""


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


def emit_error(
    session: Session,
    kind: str,
    message: str,
    code: int,
    *,
    key: str | None = None,
    cause: str | None = None,
    hint: str | None = None,
) -> None:
    """Write the JSON document of a command that failed.

    Args:
        session: Where to.
        kind: Name of the error's type.
        message: What failed.
        code: The exit code.
        key: Where.
        cause: Why.
        hint: What to do next.
    """
    fields = {"type": kind, "message": message, "key": key, "cause": cause, "hint": hint, "exit_code": int(code)}
    session.emit("error", {"error": fields})


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
        emit_error(
            session, type(error).__name__, error.message, code, key=error.key, cause=error.cause, hint=error.hint
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
