"""What the ranks tell the demo: lines of JSON in one file per rank. A killed rank leaves at most half a line."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the ranks are to do.

    Args:
        messages: Directory for their messages.
        model: Name of the model's size.
        stop: Train up to this step.
        uri: Where the checkpoints are, ``uri/step-N``, with options; None to work without.
        save_at: Save after these steps.
        hold_at: Stop in the middle of the save of this step, with parts under way, and wait to be killed.
        resume: Load the newest committed checkpoint first.
        try_first: A step that may not have been committed: try to load it, and tell what comes of it.
        seed: Seed of the weights and of all randomness, until a checkpoint is loaded.
    """

    messages: str
    model: str
    stop: int
    uri: str | None = None
    save_at: tuple[int, ...] = ()
    hold_at: int | None = None
    resume: bool = False
    try_first: int | None = None
    seed: int = 0

    def to_json(self) -> str:
        """Write it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read it back."""
        fields = json.loads(text)
        return cls(**{**fields, "save_at": tuple(fields["save_at"])})


class MessageWriter:
    """One rank's messages; any thread may write.

    Args:
        directory: Where the files are.
        rank: Who writes.
    """

    def __init__(self, directory: str, rank: int) -> None:
        self._rank = rank
        self._path = Path(directory, f"rank-{rank}.jsonl")
        self._lock = threading.Lock()

    def __call__(self, kind: str, **fields: object) -> None:
        """Write a message.

        Args:
            kind: What it is about.
            **fields: The rest.
        """
        line = json.dumps({"kind": kind, "rank": self._rank, "time_s": time.monotonic(), **fields})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class MessageReader:
    """All ranks' messages, as they come.

    Args:
        directory: Where the files are.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._offsets: dict[str, int] = {}

    def read(self) -> list[Message]:
        """Give the messages since the last call, in the order of time."""
        found: list[Message] = []
        for name in sorted(os.listdir(self._directory)):
            with Path(self._directory, name).open("rb") as file:
                file.seek(self._offsets.get(name, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offsets[name] = self._offsets.get(name, 0) + len(whole)
            found += [json.loads(line) for line in whole.splitlines()]
        return sorted(found, key=lambda message: float(message["time_s"]))
