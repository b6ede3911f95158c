"""``dcp-cloud diff``: what differs between two checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.failures import ExitCode
from dcp_cloud.cli.progress import ProgressDisplay
from dcp_cloud.cli.session import JsonOption, Session, VerboseOption, start
from dcp_cloud.cli.text import count, safe

if TYPE_CHECKING:
    from dcp_cloud.tools.diff import DiffLine

_SHOWN_LINES = 50
_UriArgument = Annotated[str, typer.Argument(help="A checkpoint; options follow a '?'.", show_default=False)]


def diff(
    ctx: typer.Context,
    a: _UriArgument,
    b: _UriArgument,
    values: Annotated[
        bool,
        typer.Option(
            "--values", help="Read the tensors that checksums tell apart, or cannot compare.", show_default=False
        ),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show what differs between two checkpoints: names, shapes, dtypes and values.

    Values are compared by the checksums that were recorded when they were saved, so only the two commits are read.
    Checksums say nothing about tensors that were sharded differently, or whose writer recorded none; these count as
    [yellow]not compared[/] unless [bold]--values[/] reads them. Then it is also told how far apart tensors are.

    Exit code 0 if nothing differs and everything was compared, otherwise 1.
    """
    session = start(ctx, json=json, verbose=verbose)
    sides = [Location(uri, transfer=None, store=None, config=None, schemes=None) for uri in (a, b)]
    with ProgressDisplay(session.err, "diff") as progress:
        # It brings torch, which takes seconds.
        from dcp_cloud.tools.diff import diff_checkpoints

        try:
            lines = diff_checkpoints(sides[0], sides[1], read_values=values, hook=progress)
        finally:
            for side in sides:
                side.store.close()
    differing = [line for line in lines if line.difference != "equal"]
    if session.json:
        session.emit("diff", _document([side.uri.root for side in sides], lines))
    else:
        _show(session, lines, differing, has_values=values)
    if differing:
        raise typer.Exit(ExitCode.DAMAGED)


def _document(uris: Sequence[str], lines: Sequence[DiffLine]) -> dict[str, Any]:
    return {
        "a": uris[0],
        "b": uris[1],
        "equal": sum(line.difference == "equal" for line in lines),
        "differences": [
            {
                "fqn": line.fqn,
                "difference": line.difference,
                "a": line.a.what if line.a else None,
                "b": line.b.what if line.b else None,
                "max_abs": line.max_abs,
                "changed": line.changed,
            }
            for line in lines
            if line.difference != "equal"
        ],
    }


def _show(session: Session, lines: Sequence[DiffLine], differing: Sequence[DiffLine], *, has_values: bool) -> None:
    out = session.out
    if differing:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("Name", "Difference", "A", "B"):
            table.add_column(column, overflow="fold")
        for line in differing[:_SHOWN_LINES]:
            sides = (Text(safe(side.what)) if side else Text("–") for side in (line.a, line.b))
            table.add_row(Text(safe(line.fqn)), _verdict(line), *sides)
        out.print(table)
        if len(differing) > _SHOWN_LINES:
            out.print(f"… and {len(differing) - _SHOWN_LINES:,} more; --json lists them all")
        out.print()
    counts = Counter(line.difference for line in lines)
    parts = [f"{counts['equal']:,} equal", f"{len(differing) - counts['unknown']:,} different"]
    if counts["unknown"]:
        parts.append(f"{counts['unknown']:,} not compared")
    out.print(f"{count(len(lines), 'name')}: {', '.join(parts)}")
    if counts["unknown"] and not has_values:
        out.print("Checksums cannot compare all of them; --values reads those that are in doubt.", style="yellow")


def _verdict(line: DiffLine) -> Text:
    if line.difference == "unknown":
        return Text("not compared", "yellow")
    if line.changed is None:
        return Text(line.difference, "red")
    far = f", at most {line.max_abs:.3g} apart" if line.max_abs is not None else ""
    return Text(f"{count(line.changed, 'element')}{far}", "red")
