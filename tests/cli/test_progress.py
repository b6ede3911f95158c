"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from dcp_cloud.cli.progress import ProgressDisplay
from dcp_cloud.transfer.events import Planned, Progressed

MIB = 1024**2


class Clock:
    """A clock that moves when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_lines_tell_rate_and_time_left():
    """Where there is no terminal, one line in ten seconds says how much, how fast and how long."""
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=stream, width=100), "verify", clock=clock) as progress:
        progress(Planned(phase="verify", size_bytes=100 * MIB, items=7))
        for _ in range(25):
            clock.now_s += 1
            progress(Progressed(phase="verify", size_bytes=2 * MIB))
    assert stream.getvalue().splitlines() == [
        "verify: 7 items, 100 MiB to read",
        "verify: 20.0 MiB of 100 MiB, 2.0 MiB/s, about 40 s left",
        "verify: 40.0 MiB of 100 MiB, 2.0 MiB/s, about 30 s left",
    ]


def test_a_terminal_gets_a_bar():
    """On a terminal a bar shows bytes and rate, and is gone at the end."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with ProgressDisplay(console, "verify") as progress:
        progress(Planned(phase="verify", size_bytes=100 * MIB, items=7))
        progress(Progressed(phase="verify", size_bytes=50 * MIB))
        progress._bar.refresh()
        shown = stream.getvalue()
    assert "50.0/100.0 MiB" in shown
    assert "7 items" not in shown
    assert "\x1b[2K" in stream.getvalue()


def test_bytes_without_a_plan_show_nothing():
    """What nobody has announced has no share of anything."""
    stream, clock = io.StringIO(), Clock()
    with ProgressDisplay(Console(file=stream, width=100), "cp", clock=clock) as progress:
        clock.now_s += 100
        progress(Progressed(phase="verify", size_bytes=MIB))
    assert stream.getvalue() == ""


def test_nothing_to_read_shows_nothing():
    """A check that reads nothing announces nothing."""
    stream = io.StringIO()
    with ProgressDisplay(Console(file=stream), "verify") as progress:
        progress(Planned(phase="verify", size_bytes=0, items=0))
    assert stream.getvalue() == ""


def test_several_plans_are_one_bar():
    """What is planned later, the next checkpoint or the check of a copy, makes the one bar longer."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with ProgressDisplay(console, "cp") as progress:
        for _ in range(2):
            progress(Planned(phase="copy", size_bytes=50 * MIB, items=1))
            progress(Progressed(phase="copy", size_bytes=50 * MIB))
        (task,) = progress._bar.tasks
        assert (task.completed, task.total) == (100 * MIB, 100 * MIB)
