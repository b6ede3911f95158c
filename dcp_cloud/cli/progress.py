"""Progress on standard error: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text
from typing_extensions import Self

from dcp_cloud.cli.text import count, size
from dcp_cloud.transfer.events import Planned, Progressed, TransferEvent

_LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Shows the events of a transfer; used as a context manager and as the transfer's hook.

    Args:
        console: Where to; a bar is drawn only if it is a terminal.
        title: What is being done.
        clock: Monotonic time in seconds.
    """

    def __init__(self, console: Console, title: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._title = title
        self._clock = clock
        self._lock = threading.Lock()
        self._total_bytes = 0
        self._done_bytes = 0
        self._next_line_s = 0.0
        self._began_s = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: TransferEvent) -> None:
        """Show an event; called from any thread."""
        with self._lock:
            if isinstance(event, Planned) and event.size_bytes:
                self._total_bytes += event.size_bytes
                self._begin(event)
            elif isinstance(event, Progressed) and self._total_bytes:  # of nothing there is no share
                self._done_bytes += event.size_bytes
                self._move()

    def _begin(self, event: Planned) -> None:
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task(self._title)
            self._bar.update(self._task, total=self._total_bytes)
            return
        if self._total_bytes == event.size_bytes:  # the first plan
            self._began_s = self._clock()
            self._next_line_s = self._began_s + _LINE_EVERY_S
        verb = "move" if event.phase == "copy" else "read"
        self._line(f"{count(event.items, 'item')}, {size(event.size_bytes)} to {verb}")

    def _move(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=min(self._done_bytes, self._total_bytes))
        elif not self._console.is_terminal and self._clock() >= self._next_line_s:
            self._next_line_s += _LINE_EVERY_S
            elapsed_s = max(self._clock() - self._began_s, 1e-9)
            rate = self._done_bytes / elapsed_s
            left_s = max(self._total_bytes - self._done_bytes, 0) / rate if rate else 0.0
            self._line(
                f"{size(self._done_bytes)} of {size(self._total_bytes)}, {size(rate)}/s, about {left_s:.0f} s left"
            )

    def _line(self, text: str) -> None:
        self._console.print(Text(f"{self._title}: {text}"), soft_wrap=True)
