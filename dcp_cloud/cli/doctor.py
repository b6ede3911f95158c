"""``dcp-cloud doctor``: whether a place is fit for checkpoints, and what to mend."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import Annotated

import typer
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.failures import ExitCode
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, safe
from dcp_cloud.tools.doctor import Finding, examine

_MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "failed": ("FAIL", "bold red"), "skipped": ("–", "dim")}


def doctor(
    ctx: typer.Context,
    uri: UriArgument,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Write nothing: is it fit for loading?", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Try at a place all that saves, loads and sweeps do there, and say what to mend.

    Credentials, each permission, conditional writes (without which two jobs could overwrite each other), uploads in
    parts, the region, the clock, latency, part lengths. It writes three small objects in a directory of its own, the
    longest one as long as the provider's shortest part, and deletes them.

    Exit code 1 if a check failed; warnings do not count.
    """
    session = start(ctx, json=json, verbose=verbose)
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    findings: list[Finding] = []
    if not session.json:
        session.out.print(Text(safe(location.uri.root), "bold"), soft_wrap=True)
    try:
        with closing(examine(location, read_only=read_only)) as examination:  # a Ctrl-C between two checks tidies up
            for finding in examination:
                findings.append(finding)
                if not session.json:
                    _show(session, finding)
    finally:
        location.store.close()
    failed = [finding for finding in findings if finding.status == "failed"]
    if session.json:
        session.emit(
            "doctor",
            {"uri": location.uri.root, "ok": not failed, "findings": [dataclasses.asdict(one) for one in findings]},
        )
    else:
        _conclude(session, findings, failed)
    if failed:
        raise typer.Exit(ExitCode.DAMAGED)


def _show(session: Session, finding: Finding) -> None:
    mark, style = _MARKS[finding.status]
    text = Text.assemble("  ", (f"{mark:<5}", style), f"{finding.check:<31} ", (safe(finding.detail), "dim"))
    if finding.status == "failed":
        text.append(f"\n{'':<7}without it: no {finding.needed_for}")
    if finding.fix and finding.status != "ok":
        text.append(f"\n{'':<7}next: {safe(finding.fix)}", "bold")
    session.out.print(text, soft_wrap=True)


def _conclude(session: Session, findings: list[Finding], failed: list[Finding]) -> None:
    warned = sum(finding.status == "warning" for finding in findings)
    if failed:
        session.out.print(f"\n{count(len(failed), 'check')} failed", style="red")
    elif warned:
        session.out.print(f"\nfit for checkpoints, with {count(warned, 'warning')}", style="yellow")
    else:
        session.out.print("\nfit for checkpoints", style="green")
