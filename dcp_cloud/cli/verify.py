"""``dcp-cloud verify``: whether a checkpoint is what was saved."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.failures import ExitCode
from dcp_cloud.cli.progress import ProgressDisplay
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, duration, safe, size, some
from dcp_cloud.uri import StoreURI

if TYPE_CHECKING:
    from dcp_cloud.checkpoint.verify import Problem, VerifyReport

_SHOWN_PROBLEMS = 50


def verify(
    ctx: typer.Context,
    uri: UriArgument,
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Look at names and lengths only; read no data.", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Find everything that is wrong with a checkpoint.

    Every object that it names must be there and long enough, its items must keep apart, and the chunks of each tensor
    must cover it. Then every byte is read and compared with the checksum that was recorded when it was saved, in
    bounded memory ([bold]--shallow[/] leaves this out).

    Works for checkpoints of other writers too, as far as they recorded checksums. Exit code 1 if anything is wrong.
    """
    session = start(ctx, json=json, verbose=verbose)
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    with ProgressDisplay(session.err, "verify") as progress:
        # It brings torch, which takes seconds.
        from dcp_cloud.checkpoint.verify import verify_checkpoint

        try:
            report = verify_checkpoint(location.store, deep=not shallow, transfer=location.transfer, hook=progress)
        finally:
            location.store.close()
    if session.json:
        _emit(session, location.uri.root, report)
    else:
        _show(session, location.uri, report)
    if not report.ok:
        raise typer.Exit(ExitCode.DAMAGED)


def _emit(session: Session, uri: str, report: VerifyReport) -> None:
    session.emit(
        "verify",
        {
            "uri": uri,
            "ok": report.ok,
            "deep": report.deep,
            "tensors": report.tensors,
            "items": report.items,
            "objects": report.objects,
            "data_bytes": report.data_bytes,
            "verified_items": report.verified_items,
            "unrecorded_items": report.unrecorded_items,
            "read_bytes": report.read_bytes,
            "duration_s": round(report.duration_s, 3),
            "problems": [
                {"kind": one.kind, "object": one.key, "tensors": list(one.tensors), "cause": one.cause}
                for one in report.problems
            ],
        },
    )


def _show(session: Session, uri: StoreURI, report: VerifyReport) -> None:
    out = session.out
    is_proved = report.deep and report.verified_items == report.items
    verdict = ("intact", "bold green") if is_proved else ("no problem found", "green")
    if not report.ok:
        verdict = (f"damaged, {count(len(report.problems), 'problem')}", "bold red")
    out.print(Text.assemble((safe(uri.root), "bold"), ": ", verdict), soft_wrap=True)
    if report.objects:
        _show_extent(session, report)
    for number, problem in enumerate(report.problems[:_SHOWN_PROBLEMS], start=1):
        out.print(_problem(number, problem), soft_wrap=True)
    if len(report.problems) > _SHOWN_PROBLEMS:
        out.print(f"\n… and {len(report.problems) - _SHOWN_PROBLEMS:,} more; --json lists them all")
    if not report.ok:
        parent = uri.at(uri.prefix.rpartition("/")[0])
        out.print("\nLoad another checkpoint, or restore these objects from a copy.")
        out.print(Text(f"  dcp-cloud ls {shlex.quote(str(parent))}", "bold"), soft_wrap=True)


def _show_extent(session: Session, report: VerifyReport) -> None:
    out = session.out
    out.print(f"  objects   {report.objects:,}, {size(report.data_bytes)}")
    out.print(f"  tensors   {report.tensors:,} in {count(report.items, 'item')}")
    if not report.deep:
        out.print("  verified  names and lengths only (shallow): no data was read")
        return
    rate = report.read_bytes / report.duration_s if report.duration_s else 0.0
    out.print(f"  read      {size(report.read_bytes)} in {duration(report.duration_s)} ({size(rate)}/s)")
    out.print(f"  verified  {report.verified_items:,} of {count(report.items, 'item')} by checksum")
    if report.unrecorded_items:
        line = f"  readable  {count(report.unrecorded_items, 'item')} without a recorded checksum"
        out.print(line, style="yellow")


def _problem(number: int, problem: Problem) -> Text:
    text = Text.assemble(f"\n{number:>3}  ", (problem.kind, "bold red"), f"  {safe(problem.key)}")
    if problem.tensors:
        text.append("\n     tensor  " if len(problem.tensors) == 1 else "\n     tensors ", "dim")
        text.append(some(problem.tensors))
    text.append("\n     found   ", "dim")
    text.append(safe(problem.cause))
    return text
