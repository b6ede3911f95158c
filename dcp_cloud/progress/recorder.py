"""Events on file: what ``dcp-cloud inspect --html`` draws a timeline of."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dcp_cloud.errors import ConfigError
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, RequestDone, Stalled, TransferEvent

logger = logging.getLogger(__name__)

_KINDS: Mapping[str, type[Any]] = MappingProxyType(
    {kind.__name__: kind for kind in (RequestDone, Planned, Progressed, PhaseDone, Stalled)}
)
_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "str": (str,),
        "Phase": (str,),
        "str | None": (str, type(None)),
    }
)
_MAX_NUMBER = 2**62
_MAX_FILE_BYTES = 256 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An event and when it was told.

    Args:
        at_s: Time since the recorder was made, seconds.
        lane: Number of the thread that told it, from 0 in the order of their first events.
        event: The event.
    """

    at_s: float
    lane: int
    event: TransferEvent


class EventRecorder:
    """Keeps events, and writes them to a file, one JSON document a line, whenever a phase ends.

    A file that cannot be written is a warning in the log: a recording must not end a save.

    Args:
        path: The file; ``{rank}`` and ``{pid}`` in it are filled in. None: only kept, see ``events``.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = None if path is None else os.fspath(path)
        self._clock = clock
        self._began_s = clock()
        self._lock = threading.Lock()
        self._lanes: dict[int, int] = {}
        self._events: list[Recorded] = []
        self._written = 0

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._path,)

    @property
    def events(self) -> tuple[Recorded, ...]:
        """The events so far."""
        with self._lock:
            return tuple(self._events)

    def __call__(self, event: TransferEvent) -> None:
        """Keep an event."""
        with self._lock:
            lane = self._lanes.setdefault(threading.get_ident(), len(self._lanes))
            self._events.append(Recorded(at_s=self._clock() - self._began_s, lane=lane, event=event))
            if isinstance(event, PhaseDone) and self._path is not None:
                try:
                    self._write(self._path)
                except OSError as error:
                    logger.warning("cannot write the recorded events to %s: %s", self._path, error)

    def _write(self, path: str) -> None:
        path = path.replace("{rank}", os.environ.get("RANK", "0")).replace("{pid}", str(os.getpid()))
        with open(path, "a" if self._written else "w", encoding="utf-8") as file:
            for one in self._events[self._written :]:
                kind = type(one.event).__name__
                fields = dataclasses.asdict(one.event)
                file.write(json.dumps({"at_s": round(one.at_s, 6), "lane": one.lane, "kind": kind, **fields}) + "\n")
        self._written = len(self._events)


def read_events(path: str | os.PathLike[str]) -> list[Recorded]:
    """Read what a recorder wrote.

    Args:
        path: The file.

    Returns:
        The events in the order in which they were told.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        if os.path.getsize(path) > _MAX_FILE_BYTES:
            raise ConfigError(f"{os.fspath(path)} is too long", hint=f"up to {_MAX_FILE_BYTES} bytes are read")
        with open(path, encoding="utf-8") as file:
            return [_read(line) for line in file]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{os.fspath(path)} holds no recorded events", cause=str(error), hint="name a file that EventRecorder wrote"
        ) from error


def _read(line: str) -> Recorded:
    fields = json.loads(line)
    at_s, lane, kind = float(fields.pop("at_s")), int(fields.pop("lane")), _KINDS[fields.pop("kind")]
    for field in dataclasses.fields(kind):
        value: object = fields.get(field.name, field.default)
        is_possible = not isinstance(value, (int, float)) or abs(value) <= _MAX_NUMBER
        if not isinstance(value, _TYPES[str(field.type)]) or not is_possible:
            raise TypeError(f"{field.name} of a {kind.__name__} is {str(value)[:50]!r}")
    if not abs(at_s) <= _MAX_NUMBER:
        raise ValueError(f"an event at {at_s} s")
    return Recorded(at_s=at_s, lane=lane, event=kind(**fields))
