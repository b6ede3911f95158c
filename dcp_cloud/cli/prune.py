"""``dcp-cloud prune``: delete the checkpoints of a run that a policy does not keep."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.failures import ExitCode, NotConfirmedError, exit_code_of
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, iso, moment, safe, size
from dcp_cloud.config import parse_seconds
from dcp_cloud.errors import CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from dcp_cloud.manager.prune import RetentionReport
    from dcp_cloud.manager.retention import BestMode, KeepBest, RetentionPolicy
    from dcp_cloud.manager.steps import StepInfo


def prune(
    ctx: typer.Context,
    uri: UriArgument,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", metavar="N", help="Keep the N highest steps.", show_default=False)
    ] = None,
    keep_every: Annotated[
        int | None, typer.Option("--keep-every", metavar="M", help="Keep the multiples of M.", show_default=False)
    ] = None,
    keep_best: Annotated[
        str | None,
        typer.Option(
            "--keep-best",
            metavar="METRIC:min|max[:K]",
            help="Keep the K best ones (1) by a metric that was saved with them: loss:min:3.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="TEMPLATE", help="How the directories of steps are called.")
    ] = "step-{step}",
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE",
            help="Leave a step alone to which another save has written within this time; older leftovers of a save "
            "count as crashed.",
        ),
    ] = "24h",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be deleted; delete nothing.", show_default=False)
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Delete the checkpoints of a run that no rule keeps, and say of each one why it goes or stays.

    The URI is that of the run, and its steps lie directly below it: what CheckpointManager writes. At least one rule is
    needed. A checkpoint stays if any rule wants it, and the newest one always stays; it is looked at first, and if it
    is damaged nothing is deleted, and the exit code is 1.

    Only committed checkpoints are judged, so a running job is not disturbed; what crashed saves left is for
    [bold]sweep[/]. A removal that broke off is finished by the next run.
    """
    session = start(ctx, json=json, verbose=verbose)
    older_than_s = parse_seconds(older_than)
    # They bring torch, which takes seconds.
    from dcp_cloud.manager.names import StepNames
    from dcp_cloud.manager.prune import plan_prune
    from dcp_cloud.manager.prune import prune as run
    from dcp_cloud.manager.steps import Steps

    policy = _policy(keep_last, keep_every, keep_best)
    if not (yes or dry_run or sys.stdin.isatty()):
        raise ConfigError(
            "prune asks before it deletes, and there is no terminal to ask on",
            cause="nothing was deleted",
            hint="add --yes, or --dry-run to see what would be deleted",
        )
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    steps = Steps(location.store, StepNames(name), transfer=location.transfer)
    try:
        infos = {info.step: info for info in steps.describe()}
        if not infos:
            raise CheckpointNotFoundError(
                "there are no steps here",
                key=location.uri.root,
                cause=f"nothing that is called {name} is committed directly below",
                hint="list what is there: dcp-cloud ls; pass --name if the steps are called otherwise",
            )
        report = plan_prune(steps, policy)
        if report.doomed and not (yes or dry_run):
            _ask(session, report, infos)
        if not dry_run:
            report = run(steps, policy, stale_after_s=older_than_s, only=report.doomed)
    except KeyboardInterrupt:
        session.err.print("not everything may have been deleted; run the same command again to finish", style="yellow")
        raise
    finally:
        location.store.close()
    if session.json:
        session.emit("prune", _document(report, infos))
    else:
        _show(session, report, infos)
    _tell_trouble(session, report)


def _policy(keep_last: int | None, keep_every: int | None, keep_best: str | None) -> RetentionPolicy:
    from dcp_cloud.manager.retention import RetentionPolicy

    if keep_last is None and keep_every is None and keep_best is None:
        raise ConfigError(
            "prune needs a rule that says what to keep",
            cause="nothing was deleted",
            hint="pass --keep-last, --keep-every or --keep-best",
        )
    return RetentionPolicy(
        keep_last=keep_last, keep_every=keep_every, best=None if keep_best is None else _best(keep_best)
    )


def _best(text: str) -> KeepBest:
    from dcp_cloud.manager.retention import KeepBest

    metric, *rest = text.rsplit(":", 2)
    if len(rest) == 2 and rest[0] not in ("min", "max"):
        metric, rest = f"{metric}:{rest[0]}", rest[1:]  # a colon in the metric's name
    modes: dict[str, BestMode] = {"min": "min", "max": "max"}
    mode, number = modes.get(rest[0] if rest else ""), (rest[1] if len(rest) == 2 else "1")
    if mode is None or not number.isdecimal() or len(number) > 9:
        raise ConfigError(
            f"--keep-best {text!r} is not understood", hint="write METRIC:min or METRIC:max, then :K for the K best"
        )
    return KeepBest(metric=metric, mode=mode, count=int(number))


def _ask(session: Session, report: RetentionReport, infos: dict[int, StepInfo]) -> None:
    _show(session, report, infos, to_err=True)
    session.err.print("Delete them? [y/N] ", end="", markup=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotConfirmedError("nothing was deleted")


def _show(session: Session, report: RetentionReport, infos: dict[int, StepInfo], *, to_err: bool = False) -> None:
    out = session.err if to_err else session.out
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Step", justify="right")
    table.add_column("Committed (UTC)")
    table.add_column("Size", justify="right")
    table.add_column("Verdict")
    table.add_column("Why", overflow="fold")
    skipped = {one.step for one in report.skipped}
    for verdict in report.verdicts:
        info = infos.get(verdict.step)
        word, style = ("keep", "green") if verdict.keep else ("delete", "red")
        if not report.dry_run and not verdict.keep:
            word, style = ("deleted", "red") if verdict.step in report.deleted else ("left", "yellow")
        table.add_row(
            str(verdict.step),
            moment(info.committed_at if info else None),
            size(info.size_bytes) if info else "–",
            Text(word, style),
            Text(safe("another save is there" if verdict.step in skipped else ", ".join(verdict.reasons))),
        )
    out.print(Text(safe(report.uri), "bold"), soft_wrap=True)
    out.print(table)
    gone = report.doomed if report.dry_run else report.deleted
    freed = sum(infos[step].size_bytes for step in gone if step in infos)
    done = "to delete" if report.dry_run else "deleted"
    out.print(
        f"\n{count(len(report.verdicts), 'checkpoint')}: {len(report.kept)} kept, {len(gone)} {done}, {size(freed)}"
    )
    if report.finished:
        out.print(f"finished the removal of {count(len(report.finished), 'checkpoint')} that had broken off")


def _tell_trouble(session: Session, report: RetentionReport) -> None:
    for one in report.skipped:
        session.err.print(Text(f"\nnot deleted: step {one.step}: {safe(str(one.error))}", "yellow"), soft_wrap=True)
    if report.error is not None:
        session.err.print(Text(f"\nnot everything was deleted: {safe(str(report.error))}", "red"), soft_wrap=True)
        raise typer.Exit(exit_code_of(report.error))
    if report.skipped:
        raise typer.Exit(ExitCode.DAMAGED)


def _metrics(info: StepInfo | None) -> dict[str, float | None] | None:
    """Give the metrics in a form that JSON has: it knows neither infinity nor not-a-number."""
    if info is None or info.metrics is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in info.metrics.items()}


def _document(report: RetentionReport, infos: dict[int, StepInfo]) -> dict[str, Any]:
    return {
        "uri": report.uri,
        "dry_run": report.dry_run,
        "checkpoints": [
            {
                "step": verdict.step,
                "uri": infos[verdict.step].uri if verdict.step in infos else None,
                "committed_at": iso(infos[verdict.step].committed_at) if verdict.step in infos else None,
                "size_bytes": infos[verdict.step].size_bytes if verdict.step in infos else None,
                "metrics": _metrics(infos.get(verdict.step)),
                "keep": verdict.keep,
                "reasons": list(verdict.reasons),
                "deleted": verdict.step in report.deleted,
            }
            for verdict in report.verdicts
        ],
        "skipped": [{"step": one.step, "cause": str(one.error)} for one in report.skipped],
        "finished": list(report.finished),
        "error": str(report.error) if report.error is not None else None,
    }
