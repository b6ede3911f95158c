"""``dcp-cloud cp``: a checkpoint from one place to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.progress import ProgressDisplay
from dcp_cloud.cli.session import JsonOption, Session, VerboseOption, start
from dcp_cloud.cli.text import count, duration, safe, size

if TYPE_CHECKING:
    from dcp_cloud.tools.copy import CopyReport


def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="The checkpoint; options follow a '?'.", show_default=False)],
    target: Annotated[str, typer.Argument(help="Where it goes, on any store.", show_default=False)],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Copy all checkpoints at and below SOURCE.", show_default=False)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another checkpoint at TARGET.", show_default=False)
    ] = False,
    relay: Annotated[
        bool,
        typer.Option(
            "--relay", help="Read and send all bytes here, even if the provider could copy.", show_default=False
        ),
    ] = False,
    read_back: Annotated[
        bool, typer.Option("--read-back", help="Verify every byte of the copy before the commit.", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Copy a checkpoint between any two places: clouds, buckets, local disks.

    The copy appears whole or not at all: its commit is written last. Bytes that pass through this machine are compared
    with the checksums that were recorded when they were saved; within one provider's account the provider copies them
    itself where it can, and only lengths are compared ([bold]--read-back[/] verifies the bytes).

    After an interruption the same command goes on where it stopped, and a copy that is there already is left alone.
    """
    session = start(ctx, json=json, verbose=verbose)
    ends = [Location(uri, transfer=None, store=None, config=None, schemes=None) for uri in (source, target)]
    with ProgressDisplay(session.err, "cp") as progress:
        # It brings torch, which takes seconds.
        from dcp_cloud.tools.copy import copy_checkpoint, copy_tree

        copy = copy_tree if recursive else copy_checkpoint
        try:
            done = copy(
                ends[0], ends[1], overwrite=overwrite, server_side=not relay, read_back=read_back, hook=progress
            )
        finally:
            for end in ends:
                end.store.close()
    reports = done if isinstance(done, list) else [done]
    if session.json:
        session.emit("cp", {"copies": [dataclasses.asdict(report) for report in reports]})
    else:
        _show(session, reports)


def _show(session: Session, reports: Sequence[CopyReport]) -> None:
    for report in reports:
        session.out.print(Text.assemble((safe(report.target), "bold"), ": ", _verdict(report)), soft_wrap=True)
        if report.was_there:
            continue
        rate = report.size_bytes / report.duration_s if report.duration_s else 0.0
        took = f"{size(report.size_bytes)} in {duration(report.duration_s)} ({size(rate)}/s)"
        session.out.print(f"  objects   {report.objects:,}, {took}{_ways(report)}")
        session.out.print(
            f"  verified  {report.verified_items:,} of {count(report.items, 'item')} by checksum{_rest(report)}"
        )


def _verdict(report: CopyReport) -> tuple[str, str]:
    return ("was there already", "green") if report.was_there else ("copied", "bold green")


def _rest(report: CopyReport) -> str:
    """Say why some items were not verified."""
    if report.verified_items == report.items:
        return ""
    return "; the provider copied, --read-back verifies" if report.server_side else "; its writer recorded no others"


def _ways(report: CopyReport) -> str:
    ways = [("by the provider", report.server_side), ("from an earlier try", report.resumed)]
    return "".join(f", {number} {way}" for way, number in ways if number)
