"""``dcp-cloud serve-emulators``: object stores on this machine, for trying things out."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from enum import Enum
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.text import Text

from dcp_cloud.cli.session import JsonOption, Session, VerboseOption, start
from dcp_cloud.errors import MissingExtraError

if TYPE_CHECKING:
    from dcp_cloud.testing import ObjectServer


class Emulator(str, Enum):
    """The servers that can be started."""

    MOTO = "moto"
    CEPH = "ceph"
    FAKE_GCS = "fake-gcs"
    AZURITE = "azurite"


def serve_emulators(
    ctx: typer.Context,
    servers: Annotated[
        list[Emulator] | None, typer.Argument(help="Which ones; all that are installed if none is named.")
    ] = None,
    bucket: Annotated[str, typer.Option(help="Bucket, or container, to make on each.")] = "checkpoints",
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Start object stores on this machine, print how to reach them, and serve until Ctrl-C.

    [bold]moto[/] and [bold]ceph[/] speak S3, [bold]fake-gcs[/] Google Cloud Storage, [bold]azurite[/] Azure Blob
    Storage. They listen on 127.0.0.1 only, and what they hold is gone when they end.
    """
    session = start(ctx, json=json, verbose=verbose)
    signal.signal(signal.SIGTERM, _end)
    with ExitStack() as resources:
        running = _start(session, servers or list(Emulator), resources, is_chosen=bool(servers))
        for server in running:
            server.create_bucket(bucket)
        if session.json:
            session.emit("emulators", {"servers": [_document(server, bucket) for server in running]})
        else:
            _explain(session, running, bucket)
        sys.stdout.flush()
        try:
            signal.pause()
        except KeyboardInterrupt:
            session.err.print("stopping")


def _start(session: Session, names: Sequence[Emulator], resources: ExitStack, *, is_chosen: bool) -> list[ObjectServer]:
    from dcp_cloud.testing import AzuriteServer, CephServer, FakeGCSServer, MotoServer

    makers = {
        Emulator.MOTO: MotoServer,
        Emulator.CEPH: CephServer,
        Emulator.FAKE_GCS: FakeGCSServer,
        Emulator.AZURITE: AzuriteServer,
    }
    running: list[ObjectServer] = []
    missing: MissingExtraError | None = None
    for name in names:
        try:
            running.append(resources.enter_context(makers[name]()))
        except MissingExtraError as error:
            if is_chosen:
                raise
            missing = error
            session.err.print(Text(f"{error.message}; {error.hint}", "yellow"), soft_wrap=True)
    if not running and missing is not None:
        raise missing
    return running


def _document(server: ObjectServer, bucket: str) -> dict[str, object]:
    return {
        "name": server.name,
        "endpoint_url": server.endpoint_url,
        "uri": server.uri(bucket, "run"),
        "environment": dict(server.environment),
    }


def _explain(session: Session, running: Sequence[ObjectServer], bucket: str) -> None:
    out = session.out
    for server in running:
        out.print(Text.assemble((server.name, "bold"), f"  {server.endpoint_url}"), soft_wrap=True)
        for name, value in server.environment.items():
            out.print(f"  export {name}={shlex.quote(value)}", soft_wrap=True, markup=False)
        out.print(f"  dcp-cloud doctor {shlex.quote(server.uri(bucket, 'run'))}\n", soft_wrap=True, markup=False)
    out.print("Ctrl-C ends them all; what they hold is gone then.")


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave as with an error, so that the servers are stopped."""
    raise SystemExit(128 + number)
