"""``dcp-cloud ls``: which checkpoints there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from dcp_cloud.checkpoint.catalog import CheckpointEntry, list_checkpoints
from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.failures import ExitCode
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, iso, moment, safe, size

_STYLES = {"complete": "green", "rank-local": "cyan", "incomplete": "yellow"}


def ls(ctx: typer.Context, uri: UriArgument, json: JsonOption = False, verbose: VerboseOption = 0) -> None:
    """List the checkpoints at and below a prefix: step, time of the commit, size, complete or not.

    A checkpoint is [green]complete[/] once it is committed; until then it is [yellow]incomplete[/]: its save is still
    running, or never finished. [cyan]rank-local[/]: saved without collectives, each rank has committed for itself.

    Nothing is opened; one listing tells it all. If there is no checkpoint at all the exit code is 3.
    """
    session = start(ctx, json=json, verbose=verbose)
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    try:
        entries = list_checkpoints(location.store, transfer=location.transfer)
    finally:
        location.store.close()
    if session.json:
        session.emit("ls", {"uri": location.uri.root, "checkpoints": [_document(entry) for entry in entries]})
    elif entries:
        _show(session, location.uri.root, entries)
    if not entries:
        _explain_empty(session, location.uri.root)
        raise typer.Exit(ExitCode.NOT_FOUND)


def _document(entry: CheckpointEntry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "uri": entry.uri,
        "name": entry.name,
        "step": entry.step,
        "state": entry.state,
        "committed_at": iso(entry.committed_at),
        "modified_at": iso(entry.modified_at),
        "size_bytes": entry.size_bytes,
        "objects": entry.objects,
        "ranks": entry.ranks,
    }


def _show(session: Session, uri: str, entries: Sequence[CheckpointEntry]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Step", justify="right")
    table.add_column("State")
    table.add_column("Committed (UTC)")
    table.add_column("Size", justify="right")
    table.add_column("Objects", justify="right")
    table.add_column("Checkpoint", overflow="fold")
    for entry in entries:
        table.add_row(
            "–" if entry.step is None else str(entry.step),
            Text(entry.state, _STYLES[entry.state]),
            moment(entry.committed_at),
            size(entry.size_bytes),
            f"{entry.objects:,}",
            Text(safe(entry.path) or "."),
        )
    session.out.print(Text(safe(uri), "bold"), soft_wrap=True)
    session.out.print(table)
    states = [entry.state for entry in entries]
    summary = ", ".join(f"{states.count(state)} {state}" for state in _STYLES if state in states)
    session.out.print(f"\n{count(len(entries), 'checkpoint')}: {summary}, {size(sum(e.size_bytes for e in entries))}")


def _explain_empty(session: Session, uri: str) -> None:
    text = Text.assemble(("no checkpoints", "yellow"), f" at or below {safe(uri)}")
    text.append("\n  next  ", "dim")
    text.append("check the spelling, or list the prefix above; a running save shows up when its first object is stored")
    session.err.print(text, soft_wrap=True)
