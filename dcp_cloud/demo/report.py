"""The tables at the end of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dcp_cloud.config import MIB
from dcp_cloud.demo.story import Check, Outcome

_MAX_ROWS = 15


def show(console: Console, outcome: Outcome, checks: Sequence[Check], *, store: str, duration_s: float) -> bool:
    """Print what was seen, what was checked and the verdict.

    Args:
        console: Where to.
        outcome: What was seen.
        checks: What must be true.
        store: What the store is called.
        duration_s: How long it all took.

    Returns:
        Whether everything is true.
    """
    console.print()
    console.print(_transfers(outcome, store))
    console.print(_losses(outcome))
    console.print(_checks(checks))
    ok = all(check.is_true for check in checks)
    verdict = "[bold green]PASSED[/]" if ok else "[bold red]FAILED[/]"
    console.print(
        f"{verdict}: {sum(check.is_true for check in checks)} of {len(checks)} checks hold, {duration_s:.0f} s",
    )
    return ok


def document(outcome: Outcome, checks: Sequence[Check], *, store: str, duration_s: float) -> dict[str, Any]:
    """Give what the tables show, with every step of the losses.

    Args:
        outcome: What was seen.
        checks: What must be true.
        store: What the store is called.
        duration_s: How long it all took.

    Returns:
        The fields of the JSON document.
    """
    return {
        "store": store,
        "ok": all(check.is_true for check in checks),
        "duration_s": duration_s,
        "parameters": outcome.parameters,
        "transfers": [
            {
                "job": one.act,
                "what": one.what,
                "step": one.step,
                "processes": one.processes,
                "size_bytes": one.size_bytes,
                "duration_s": one.duration_s,
                "requests": one.requests,
                "retries": one.retries,
            }
            for one in outcome.transfers
        ],
        "losses": {act: {str(step): loss for step, loss in losses.items()} for act, losses in outcome.losses.items()},
        "checks": [{"claim": one.claim, "is_true": one.is_true, "detail": one.detail} for one in checks],
    }


def _transfers(outcome: Outcome, store: str) -> Table:
    table = Table(title=f"Saves and loads ({store})", title_justify="left")
    table.add_column("job")
    table.add_column("what")
    for name in ("processes", "MiB", "seconds", "MiB/s", "requests", "retries"):
        table.add_column(name, justify="right")
    for one in outcome.transfers:
        table.add_row(
            one.act,
            f"{one.what} step-{one.step}",
            str(one.processes),
            f"{one.size_bytes / MIB:.1f}",
            f"{one.duration_s:.2f}",
            f"{one.size_bytes / MIB / one.duration_s:.0f}" if one.duration_s else "",
            str(one.requests),
            str(one.retries),
        )
    return table


def _losses(outcome: Outcome) -> Table:
    """Losses with all their digits; of a long training some steps, its last one among them."""
    truth = outcome.losses["undisturbed"]
    acts = [act for act in outcome.losses if act != "undisturbed"]
    stride = -(-len(truth) // _MAX_ROWS)
    table = Table(title="Loss", title_justify="left")
    table.add_column("step", justify="right")
    for name in ("undisturbed", *acts):
        table.add_column(name)
    for step, loss in truth.items():
        if (len(truth) - step) % stride == 0:
            table.add_row(str(step), repr(loss), *(_compared(outcome.losses[act].get(step), loss) for act in acts))
    return table


def _compared(loss: float | None, truth: float) -> str:
    if loss is None:
        return ""
    return f"[green]{loss!r}[/]" if loss == truth else f"[bold red]{loss!r}[/]"


def _checks(checks: Sequence[Check]) -> Table:
    table = Table(title="Checks", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column()
    for check in checks:
        table.add_row("[green]yes[/]" if check.is_true else "[bold red]NO[/]", check.claim, check.detail)
    return table
