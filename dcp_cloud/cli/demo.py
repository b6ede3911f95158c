"""``dcp-cloud demo``: a training job is killed in mid-save and goes on, bit for bit, on other numbers of processes."""

from __future__ import annotations

import shlex
import signal
import time
from contextlib import AbstractContextManager, closing
from enum import Enum
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from dcp_cloud.cli.session import JsonOption, VerboseOption, start
from dcp_cloud.demo.place import Place, embedded, given


class DemoStore(str, Enum):
    """The stores that the demo can bring along."""

    S3 = "s3"
    GCS = "gcs"
    AZURE = "azure"
    FILE = "file"


class DemoModel(str, Enum):
    """The sizes of the model."""

    SMALL = "small"
    DEFAULT = "default"


def demo(
    ctx: typer.Context,
    store: Annotated[
        DemoStore, typer.Option(help="Store to start for the demo: an emulator on this machine, or plain files.")
    ] = DemoStore.S3,
    uri: Annotated[
        str | None, typer.Option(help="Use this store instead, below a new prefix; credentials as for any URI.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="Length of the training.")] = 9,
    model: Annotated[
        DemoModel, typer.Option(help="Size of the model: 22 million parameters, or 1.7 (small).")
    ] = DemoModel.DEFAULT,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the checkpoints; an embedded store then waits for Ctrl-C.")
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Train, save to an object store, get killed in mid-save, resume on 4 processes and on 1, and compare all numbers.

    Exit code: 0 if every number is equal, 1 if one is not. With --json the story is told on standard error.
    """
    from dcp_cloud.demo.narrator import Narrator
    from dcp_cloud.demo.report import document, show
    from dcp_cloud.demo.story import Plan, check, play

    signal.signal(signal.SIGTERM, _end)
    session = start(ctx, json=json, verbose=verbose)
    console = session.err if session.json else session.out
    began_s = time.monotonic()
    with _open(store, uri, model, keep=keep) as place:
        console.print(f"[bold]dcp-cloud demo[/] on {place.name}: {place.uri.root}")
        plan = Plan(uri=str(place.uri), model=model.value, steps=steps)
        with closing(Narrator(console)) as narrator:
            outcome = play(plan, place, narrator.listen)
        checks, duration_s = check(plan, outcome), time.monotonic() - began_s
        ok = show(console, outcome, checks, store=place.name, duration_s=duration_s)
        if session.json:
            session.emit("demo", document(outcome, checks, store=place.name, duration_s=duration_s))
        if keep:
            _explain_kept(console, place)
    raise typer.Exit(0 if ok else 1)


def _open(store: DemoStore, uri: str | None, model: DemoModel, *, keep: bool) -> AbstractContextManager[Place]:
    if uri is not None:
        return given(uri, keep=keep)
    # The shards of the small model are two of the smallest parts that S3 takes.
    return embedded(store.value, part_size="5MiB" if model is DemoModel.SMALL else "16MiB")


def _explain_kept(console: Console, place: Place) -> None:
    console.print("\nThe checkpoints are still there:")
    for name, value in place.environment.items():
        console.print(f"  export {name}={shlex.quote(value)}", soft_wrap=True)
    console.print(f"  dcp-cloud ls {shlex.quote(str(place.uri))}", soft_wrap=True)
    if place.is_embedded:
        console.print("Ctrl-C ends the store.")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave as with an error, so that children and temporary files are cleaned up."""
    raise SystemExit(128 + number)
