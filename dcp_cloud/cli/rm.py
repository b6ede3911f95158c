"""``dcp-cloud rm``: remove a checkpoint."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Annotated, Any

import typer
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.checkpoint.remove import Removal, plan_removal, remove_checkpoint
from dcp_cloud.cli.failures import NotConfirmedError
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, iso, moment, safe, size, some
from dcp_cloud.errors import ConfigError

# An uncommitted save that wrote within this time may still be running.
_RECENT_S = 3600.0


def rm(
    ctx: typer.Context,
    uri: UriArgument,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Remove the checkpoints below, too.", show_default=False)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be deleted; delete nothing.", show_default=False)
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Remove a checkpoint: its commit first, so that a half-removed one never looks complete, then its data.

    What unfinished saves have left in the same place goes too, so stop a job that is saving there first. Only
    .metadata, __RANK.metadata and *.distcp are deleted, directly below the URI; other files, and checkpoints in
    directories below, stay. With [bold]--recursive[/] the same is done in all directories below.

    Nothing is read, so damaged checkpoints can be removed as well. After an interruption run it again: it goes on where
    it was. If there is nothing to remove the exit code is 3.
    """
    session = start(ctx, json=json, verbose=verbose)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise ConfigError(
            "rm asks before it deletes, and there is no terminal to ask on",
            cause="nothing was deleted",
            hint="add --yes, or --dry-run to see what would be deleted",
        )
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    try:
        planned = plan_removal(location.store, recursive=recursive, transfer=location.transfer)
        _warn(session, planned)
        if not (yes or dry_run):
            _ask(session, planned)
        if not dry_run:
            _remove(session, location, planned)
    finally:
        location.store.close()
    if session.json:
        session.emit("rm", _document(location.uri.root, planned, dry_run=dry_run))
    else:
        _show(session, planned, "would be removed" if dry_run else "removed")


def _remove(session: Session, location: Location, planned: Removal) -> None:
    try:
        remove_checkpoint(location.store, planned=planned, transfer=location.transfer)
    except KeyboardInterrupt:
        session.err.print("broken off in mid-removal; run the same command again to finish", style="yellow")
        raise


def _ask(session: Session, planned: Removal) -> None:
    _show(session, planned, "to be removed", to_err=True)
    session.err.print("Remove it? [y/N] ", end="", markup=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmedError("nothing was deleted")


def _document(uri: str, planned: Removal, *, dry_run: bool) -> dict[str, Any]:
    return {
        "uri": uri,
        "dry_run": dry_run,
        "recursive": planned.recursive,
        "checkpoints": list(planned.checkpoints),
        "size_bytes": planned.size_bytes,
        "commits": [meta.key for meta in planned.commits],
        "data": [{"key": meta.key, "size_bytes": meta.size_bytes} for meta in planned.data],
        "uploads": [{"key": upload.key, "started_at": iso(upload.started_at)} for upload in planned.uploads],
        "uploads_error": str(planned.uploads_error) if planned.uploads_error else None,
        "others": len(planned.others),
        "checkpoints_below": list(planned.kept_checkpoints),
    }


def _show(session: Session, planned: Removal, verdict: str, *, to_err: bool = False) -> None:
    out = session.err if to_err else session.out
    out.print(Text.assemble((safe(planned.uri), "bold"), f": {verdict}"), soft_wrap=True)
    names = f" of {count(len(planned.checkpoints), 'checkpoint')}" if planned.recursive else ""
    out.print(f"  commits  {len(planned.commits):,}{names}")
    out.print(f"  data     {count(len(planned.data), 'object')}, {size(sum(m.size_bytes for m in planned.data))}")
    if planned.uploads:
        out.print(f"  uploads  {len(planned.uploads):,} unfinished")
    if planned.recursive and planned.checkpoints:
        out.print(
            Text(f"  where    {some(tuple(name or '.' for name in planned.checkpoints), limit=8)}"), soft_wrap=True
        )
    if planned.others:
        out.print(Text(f"  left     {_left(planned)}"), soft_wrap=True)


def _left(planned: Removal) -> str:
    below = planned.kept_checkpoints
    if below:
        return f"{count(len(below), 'checkpoint')} below ({some(below)}) and whatever else is there"
    return f"{count(len(planned.others), 'other file')}: {some(tuple(meta.key for meta in planned.others))}"


def _warn(session: Session, planned: Removal) -> None:
    if planned.uploads_error is not None:
        text = f"warning: unfinished uploads could not be listed and are left: {planned.uploads_error}"
        session.err.print(Text(safe(text), "yellow"), soft_wrap=True)
    at = planned.unfinished_at
    if at is not None and (datetime.now(timezone.utc) - at).total_seconds() < _RECENT_S:
        text = f"warning: a save without a commit wrote here at {moment(at)} UTC; if it is running, it will fail"
        session.err.print(Text(text, "yellow"), soft_wrap=True)
