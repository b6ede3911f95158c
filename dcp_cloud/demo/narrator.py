"""Tells what happens while it happens: bars on a terminal, lines everywhere."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from dcp_cloud.config import MIB
from dcp_cloud.demo.messages import Message
from dcp_cloud.demo.story import Act


class Narrator:
    """Listens to the ranks and writes to a console.

    Args:
        console: Where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._moved_bytes: dict[str, tuple[int, int]] = {}
        self._done: dict[str, list[Message]] = {}

    def listen(self, act: Act, message: Message) -> None:
        """Take a message of an act."""
        kind, is_first = message["kind"], message["rank"] == 0
        if kind == "begun":
            self._begin(act)
        elif kind == "ready" and is_first:
            self._line(f"{message['parameters'] / 1e6:.1f} million parameters, at step {message['step']}")
        elif kind == "step" and is_first:
            self._step(act, message)
        elif kind == "saving" and is_first:
            self._line(f"step-{message['step']}: the save begins; training goes on")
        elif kind in ("planned", "moved"):
            self._move(message)
        elif kind in ("save-done", "load-done"):
            self._finish(act, message)
        elif kind == "killed":
            moved, total = self._moved_bytes.get(f"save step-{act.job.hold_at}", (0, 0))
            where = f"in mid-save, with {moved / MIB:.0f} of {total / MIB:.0f} MiB stored"
            self._line(f"[bold red]SIGKILL[/] to all {act.processes} ranks {where}")
        elif kind == "listed":
            self._list(message)
        elif kind == "refused":
            self._line(f"step-{message['step']}: [bold]{message['error']}[/]: {escape(message['message'])}")

    def _begin(self, act: Act) -> None:
        self.close()
        processes = f"{act.processes} process{'es' if act.processes > 1 else ''}"
        self._console.print(f"\n[bold]{act.name.capitalize()}[/]: {processes}, to step {act.job.stop}")
        if self._console.is_terminal:
            columns = (TextColumn("   {task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[text]}"))
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
            self._bar("training", 0, act.job.stop, "processes are starting")

    def _step(self, act: Act, message: Message) -> None:
        text = f"step {message['step']}/{act.job.stop}: loss {message['loss']:.6f} ({message['duration_s']:.2f} s)"
        if self._bars is None:
            self._line(text)
        self._bar("training", message["step"], act.job.stop, text)

    def _move(self, message: Message) -> None:
        name = f"{message['what']} step-{message['step']}"
        moved, total = self._moved_bytes.get(name, (0, 0))
        if message["kind"] == "planned":
            total += message["size_bytes"]
        else:
            moved += message["size_bytes"]
        self._moved_bytes[name] = (moved, total)
        self._bar(name, moved, total, f"{moved / MIB:.0f}/{total / MIB:.0f} MiB")

    def _finish(self, act: Act, message: Message) -> None:
        what = message["kind"].removesuffix("-done")
        done = self._done.setdefault(f"{what} step-{message['step']}", [])
        done.append(message)
        if len(done) == act.processes:
            size_mib = sum(one["size_bytes"] for one in done) / MIB
            duration_s = max(one["duration_s"] for one in done)
            self._bar(f"{what} step-{message['step']}", 1, 1, f"{size_mib:.0f} MiB")  # the plan was an estimate
            verb = {"save": "committed", "load": "loaded"}[what]
            self._line(f"[green]step-{message['step']}: {verb}[/], {size_mib:.0f} MiB in {duration_s:.1f} s")

    def _list(self, message: Message) -> None:
        self._line("a listing of the store shows now:")
        for entry in message["entries"]:
            self._line(f"  {entry.name}: {entry.state}, {entry.objects} objects, {entry.size_bytes / MIB:.0f} MiB")
        if message["unfinished"]:
            self._line(f"  and {message['unfinished']} unfinished uploads, which no reader sees")

    def _line(self, text: str) -> None:
        self._console.print(f"   {text}", soft_wrap=True)

    def _bar(self, name: str, completed: int, total: int, text: str) -> None:
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, text=text)
        self._bars.update(self._tasks[name], completed=completed, total=total, text=text)

    def close(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._tasks.clear()
        self._moved_bytes.clear()
        self._done.clear()
