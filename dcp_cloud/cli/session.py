"""What all commands share: where output goes, in which form, and how much of it."""

from __future__ import annotations

import json as jsonlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, TextIO, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from dcp_cloud.cli.text import safe

# A process whose output goes to a file or a pipe: the 80 columns that are assumed then would break the tables.
_PLAIN_WIDTH = 120
# Grows when a document gains fields; whoever reads it can rely on those that were there.
_SCHEMA_VERSION = 1

JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to standard output, for scripts.", show_default=False)
]
VerboseOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Log what is done; -vv for more. Errors show where they come from.",
        show_default=False,
    ),
]  # fmt: skip
UriArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="URI",
        help="s3://bucket/prefix, gs://…, az://…, abfss://…, file:///dir or ./dir; options follow a '?'.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the command line.

    Args:
        json: Whether standard output gets one JSON document instead of text.
        verbose: How much is logged: warnings (0), what is done (1), everything (2).
        out: Standard output.
        err: Standard error: progress, logs, errors.
    """

    json: bool
    verbose: int
    out: Console
    err: Console

    def emit(self, kind: str, document: Mapping[str, Any]) -> None:
        """Write the JSON document of a command.

        Args:
            kind: What it describes; its schema is called ``dcp-cloud/<kind>``.
            document: Its fields.
        """
        schema = {"schema": f"dcp-cloud/{kind}", "schema_version": _SCHEMA_VERSION}
        with _writing():
            typer.echo(jsonlib.dumps({**schema, **document}, indent=2))


class OutputError(Exception):
    """Standard output cannot be written, for another reason than that its reader has left."""


class _Output(Console):
    """Standard output. A reader that leaves ends the command: what it prints is all it is for."""

    def print(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - rich's arguments
        with _writing():
            super().print(*args, **options)


class _Messages(Console):
    """Standard error. Without a reader the command goes on in silence: a copy must not end because nobody watches."""

    def print(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - rich's arguments
        try:
            super().print(*args, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(sys.stderr)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(str(error)) from error


def silence(stream: TextIO) -> None:
    """Let a stream end nowhere: Python writes what it still holds once more at the exit, and would complain.

    Args:
        stream: Standard output or standard error.
    """
    with suppress(OSError, ValueError):  # not every stream has a number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _ConsoleHandler(logging.Handler):
    """Prints log records above a progress bar instead of through it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        self._console.print(Text(safe(line), style), soft_wrap=True)


def new_session(*, json: bool, verbose: int) -> Session:
    """Make a session on the streams of the process.

    Args:
        json: Whether standard output gets one JSON document instead of text.
        verbose: How much is logged.

    Returns:
        The session.
    """
    return Session(json=json, verbose=verbose, out=_console(stderr=False), err=_console(stderr=True))


def start(ctx: typer.Context, *, json: bool, verbose: int) -> Session:
    """Begin a run, or go on with the options that were given before the command's name.

    Args:
        ctx: The context of the group or of the command.
        json: Whether ``--json`` was given here.
        verbose: How often ``-v`` was given here.

    Returns:
        The session; the root context holds it too, for errors.
    """
    root = ctx.find_root()
    before = root.obj if isinstance(root.obj, Session) else None
    if before is None:
        session = new_session(json=json, verbose=verbose)
    else:
        session = replace(before, json=json or before.json, verbose=max(verbose, before.verbose))
    root.obj = session
    log = logging.getLogger("dcp_cloud")
    log.handlers[:] = [handler for handler in log.handlers if not isinstance(handler, _ConsoleHandler)]
    log.addHandler(_ConsoleHandler(session.err))
    log.setLevel({0: logging.WARNING, 1: logging.INFO}.get(session.verbose, logging.DEBUG))
    return session


def _console(*, stderr: bool) -> Console:
    console = _Messages(stderr=True, highlight=False) if stderr else _Output(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console
