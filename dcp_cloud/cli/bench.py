"""``dcp-cloud bench``: how fast this machine saves to and loads from a place."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.progress import ProgressDisplay
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, duration, safe, size
from dcp_cloud.config import parse_bytes
from dcp_cloud.tools.bench import BenchReport, run_bench
from dcp_cloud.tools.bench_plan import SMALL_BYTES, BenchPlan, options_for, plan_bench
from dcp_cloud.uri import StoreURI

_CHECKPOINT = "100GiB"


def bench(
    ctx: typer.Context,
    uri: UriArgument,
    size_text: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="Bytes that each measurement writes and reads, and memory that it takes: 512MiB, with --quick 128MiB. "
            "The more, the more exact.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Try fewer settings, each once.", show_default=False)] = False,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="SIZE", help="Estimate the time for a checkpoint of this size.")
    ] = _CHECKPOINT,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Measure how fast this machine saves to and loads from a place, and which options make it faster.

    Objects are written and read below the URI as a checkpoint's are, with several part sizes and numbers of requests at
    once. What is going to be moved is said before it begins. All of it is deleted at the end, after Ctrl-C and after a
    failure too.

    Run it where the training runs: in that region, on that kind of machine.
    """
    session = start(ctx, json=json, verbose=verbose)
    size_bytes = parse_bytes(size_text) if size_text is not None else None
    checkpoint_bytes = parse_bytes(checkpoint)
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    plan = plan_bench(location.transfer, location.store.limits, size_bytes=size_bytes, quick=quick)
    _announce(session, location.uri, plan)
    try:
        with ProgressDisplay(session.err, "bench") as progress:
            report = run_bench(location.store, plan, hook=progress)
    finally:
        location.store.close()
    if session.json:
        session.emit("bench", _document(location.uri, report, checkpoint_bytes))
    else:
        _show(session, location.uri, report, checkpoint_bytes)


def _announce(session: Session, uri: StoreURI, plan: BenchPlan) -> None:
    session.err.print(
        Text(
            f"bench: up to {size(plan.moved_bytes)} to be written below {safe(uri.root)}, read and deleted\n"
            f"bench: about {count(plan.write_requests, 'write request')}, {count(plan.read_requests, 'read request')} "
            f"and {size(plan.size_bytes)} of memory; providers bill requests, and bytes read from another region"
        ),
        soft_wrap=True,
    )


def _recommended(uri: StoreURI, report: BenchReport) -> tuple[dict[str, str], StoreURI]:
    """Give the options to set, and the URI with them in place of what it had."""
    options = dict(options_for(report.best.setting, report.plan.transfer))
    kept = {name: text for name, text in uri.options.items() if name.removesuffix("_bytes") not in options}
    return options, dataclasses.replace(uri, options={**kept, **options})


def _document(uri: StoreURI, report: BenchReport, checkpoint_bytes: int) -> dict[str, Any]:
    options, recommended = _recommended(uri, report)
    return {
        "uri": uri.root,
        "size_bytes": report.plan.size_bytes,
        "duration_s": round(report.duration_s, 3),
        "requests": report.requests,
        "failures": report.failures,
        "small_objects": {"size_bytes": SMALL_BYTES, "put_s": _seconds(report.put_s), "get_s": _seconds(report.get_s)},
        "measurements": [
            {
                "part_size_bytes": one.setting.part_size_bytes,
                "max_concurrency": one.setting.max_concurrency,
                "save_bytes_per_s": [round(rate) for rate in one.save_rates],
                "load_bytes_per_s": [round(rate) for rate in one.load_rates],
                "configured": one.setting == report.plan.configured,
                "recommended": one.setting == report.best.setting,
            }
            for one in report.measurements
        ],
        "recommendation": {"options": options, "uri": str(recommended)},
        "estimate": {
            "size_bytes": checkpoint_bytes,
            "save_s": round(checkpoint_bytes / report.best.save_rate, 1),
            "load_s": round(checkpoint_bytes / report.best.load_rate, 1),
        },
    }


def _seconds(values: tuple[float, ...]) -> dict[str, float]:
    return {
        "min": round(min(values), 6),
        "median": round(statistics.median(values), 6),
        "max": round(max(values), 6),
    }


def _show(session: Session, uri: StoreURI, report: BenchReport, checkpoint_bytes: int) -> None:
    out, best, configured = session.out, report.best, report.measurements[0]
    out.print(Text.assemble((safe(uri.root), "bold"), f": {size(report.plan.size_bytes)} at a time"), soft_wrap=True)
    out.print(f"  write {size(SMALL_BYTES)}  {_milliseconds(report.put_s)}")
    out.print(f"  read {size(SMALL_BYTES)}   {_milliseconds(report.get_s)}\n")
    out.print(_table(report))
    options, recommended = _recommended(uri, report)
    if options:
        gains = (
            f"saves {best.save_rate / configured.save_rate:.1f}x, loads {best.load_rate / configured.load_rate:.1f}x"
        )
        out.print(f"\nSet these options ({gains} as fast):")
        out.print(Text(f"  {safe(str(recommended))}", "bold"), soft_wrap=True)
    elif len(report.measurements) == 1:
        out.print("\nOther settings need more data to be told apart: try a larger --size.")
    else:
        out.print("\nNo other setting is more than a tenth faster: set nothing.")
    out.print(
        f"\n{size(checkpoint_bytes)} from one process: save {duration(checkpoint_bytes / best.save_rate)}, "
        f"load {duration(checkpoint_bytes / best.load_rate)}"
    )
    repeated = sum(report.failures.values())
    line = f"{count(report.requests, 'request')}, {repeated:,} repeated; everything written was deleted"
    out.print(line, style="yellow" if repeated else None)


def _table(report: BenchReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("Part size", "Requests at once", "Save", "Load"):
        table.add_column(title, justify="right")
    table.add_column("")
    for one in sorted(report.measurements, key=lambda one: one.setting):
        setting, note = one.setting, ""
        if setting == report.plan.configured:
            note = "as configured"
        elif setting == report.best.setting:
            note = "recommended"
        rates = (f"{size(one.save_rate)}/s", f"{size(one.load_rate)}/s")
        table.add_row(
            size(setting.part_size_bytes), f"{setting.max_concurrency}", *rates, note,
            style="bold" if setting == report.best.setting else None,
        )  # fmt: skip
    return table


def _milliseconds(values: tuple[float, ...]) -> str:
    """Write seconds of several requests: the median, the fastest and the slowest."""
    middle, low, high = (1000 * value for value in (statistics.median(values), min(values), max(values)))
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"
