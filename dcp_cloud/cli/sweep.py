"""``dcp-cloud sweep``: delete what crashed saves left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.failures import ExitCode, exit_code_of
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, iso, moment, safe, size
from dcp_cloud.config import parse_seconds

if TYPE_CHECKING:
    from dcp_cloud.checkpoint.sweep import SweepReport

_SHOWN = 50


def sweep(
    ctx: typer.Context,
    uri: UriArgument,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE",
            help="Leave alone what is younger: 90m, 36h. It has to be longer than the longest save takes: the data of "
            "a running save has no commit yet, just like that of a crashed one.",
        ),
    ] = "24h",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be deleted; delete nothing.", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Delete what crashed and refused saves left at and below a prefix.

    That is data of dcp-cloud that no commit (.metadata, __RANK.metadata) in its directory names, unfinished uploads of
    checkpoint data, and the temporary files of crashed writes to local disks. Checkpoints and all other files stay.

    What is younger than [bold]--older-than[/] may belong to a running save and is left alone. So is any directory with
    a commit that cannot be read; it is named, and the exit code is 1.
    """
    session = start(ctx, json=json, verbose=verbose)
    older_than_s = parse_seconds(older_than)
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    # It brings torch, which takes seconds.
    from dcp_cloud.checkpoint.sweep import sweep as run

    try:
        report = run(location.store, older_than_s=older_than_s, dry_run=dry_run, transfer=location.transfer)
    except KeyboardInterrupt:
        session.err.print("not everything was swept; run the same command again to finish", style="yellow")
        raise
    finally:
        location.store.close()
    if session.json:
        session.emit("sweep", _document(location.uri.root, report))
    else:
        _show(session, report, older_than)
    if report.uploads_error is not None:
        raise typer.Exit(exit_code_of(report.uploads_error))
    if report.unreadable:
        raise typer.Exit(ExitCode.DAMAGED)


def _document(uri: str, report: SweepReport) -> dict[str, Any]:
    return {
        "uri": uri,
        "dry_run": report.dry_run,
        "older_than_s": report.older_than_s,
        "size_bytes": report.size_bytes,
        "orphans": [
            {"key": meta.key, "size_bytes": meta.size_bytes, "modified_at": iso(meta.modified_at)}
            for meta in report.orphans
        ],
        "uploads": [{"key": upload.key, "started_at": iso(upload.started_at)} for upload in report.uploads],
        "young": report.young,
        "undated": report.undated,
        "unreadable": [{"path": one.path, "key": one.key, "cause": str(one.error)} for one in report.unreadable],
        "uploads_error": str(report.uploads_error) if report.uploads_error else None,
    }


def _show(session: Session, report: SweepReport, older_than: str) -> None:
    out = session.out
    verdict = "nothing to sweep"
    if report.orphans or report.uploads:
        verdict = "would be swept" if report.dry_run else "swept"
    out.print(Text.assemble((safe(report.uri), "bold"), f": {verdict}"), soft_wrap=True)
    if report.orphans:
        out.print(f"  data     {count(len(report.orphans), 'object')} without a commit, {size(report.size_bytes)}")
    if report.uploads:
        out.print(f"  uploads  {len(report.uploads):,} unfinished")
    if report.young:
        out.print(f"  left     {report.young:,} written within {safe(older_than)}: not looked at")
    if report.undated:
        out.print(f"  left     {report.undated:,} of unknown age: the store does not tell it", style="yellow")
    _show_deleted(session, report)
    for one in report.unreadable:
        text = Text(f"\nleft alone: {safe(one.path) or '.'}, whose commit {safe(one.key)} cannot be read", "yellow")
        session.err.print(text, soft_wrap=True)
        session.err.print(Text(f"  {safe(str(one.error))}"), soft_wrap=True)
    if report.uploads_error is not None:
        text = Text(f"\nunfinished uploads could not be listed: {safe(str(report.uploads_error))}", "red")
        session.err.print(text, soft_wrap=True)


def _show_deleted(session: Session, report: SweepReport) -> None:
    lines = [f"{moment(meta.modified_at)}  {size(meta.size_bytes):>9}  {safe(meta.key)}" for meta in report.orphans]
    lines += [f"{moment(upload.started_at)}     upload  {safe(upload.key)}" for upload in report.uploads]
    if lines:
        session.out.print()
    for line in lines[:_SHOWN]:
        session.out.print(Text(f"  {line}"), soft_wrap=True)
    if len(lines) > _SHOWN:
        session.out.print(f"  … and {len(lines) - _SHOWN:,} more; --json lists them all")
