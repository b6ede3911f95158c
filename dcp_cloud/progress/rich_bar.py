"""Progress as a bar of rich, with rate and time left."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dcp_cloud.errors import MissingExtraError
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, TransferEvent

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class RichProgress:
    """Draws a bar for each save or load while it runs.

    Args:
        progress: The display to add the bars to, which the caller starts and stops; without one, a display of its own
            that comes and goes with each transfer.
        title: What stands before the bar; without one, the phase.

    Raises:
        MissingExtraError: rich is not installed.
    """

    def __init__(self, progress: Progress | None = None, *, title: str = "") -> None:
        try:
            import rich.progress  # noqa: F401, PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "RichProgress needs the package 'rich'",
                hint="install it in the clone of dcp-cloud: pip install '.[cli]'",
            ) from error
        self._given = progress
        self._title = title
        self._lock = threading.Lock()
        self._display: Progress | None = None
        self._task: TaskID | None = None
        self._total_bytes = 0

    def __reduce__(self) -> tuple[object, ...]:
        return _rich_progress, (self._title,)

    def __call__(self, event: TransferEvent) -> None:
        """Show an event."""
        with self._lock:
            if isinstance(event, Planned):
                self._begin(event)
            elif isinstance(event, Progressed) and self._display is not None and self._task is not None:
                self._display.advance(self._task, event.size_bytes)
            elif isinstance(event, PhaseDone) and event.phase != "commit":
                self._end(is_done=event.error is None)

    def _begin(self, event: Planned) -> None:
        if self._display is None:
            self._display = self._given or _make_display()
            if self._given is None:
                self._display.start()
        if self._task is None:
            self._total_bytes = 0
            self._task = self._display.add_task(self._title or event.phase)
        self._total_bytes += event.size_bytes
        self._display.update(self._task, total=self._total_bytes)

    def _end(self, *, is_done: bool) -> None:
        display, self._display = self._display, None
        task, self._task = self._task, None
        if display is None or task is None:
            return
        if is_done:  # a save plans with an upper bound of what its items take
            display.update(task, completed=self._total_bytes)
        if self._given is None:
            display.stop()


def _rich_progress(title: str) -> RichProgress:
    return RichProgress(title=title)


def _make_display() -> Progress:
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
