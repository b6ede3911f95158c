"""Which request is struck by which fault: counted in order of arrival, or drawn from a seed."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Sequence

from dcp_cloud.testing.proxy.faults import Exchange, NetworkFault
from dcp_cloud.testing.proxy.message import Message

# Ids differ from run to run, in keys and in query parameters; what a seed decides must not.
_RANDOM_ID = re.compile(r"[0-9a-f]{8,}(?:-[0-9a-f]{4,})*")
# Parameters whose values tell requests apart and are no secrets. Signatures travel in parameters too.
_SHOWN = frozenset({"alt", "comp", "restype", "uploadType"})


class Schedule:
    """Chooses faults and remembers what it chose. Thread-safe.

    Args:
        faults: What goes wrong; of several that would strike a request, the first one does.
        seed: Decides what is left to chance.
    """

    def __init__(self, faults: Sequence[NetworkFault], *, seed: int) -> None:
        self.faults = tuple(faults)
        self.seed = seed
        self._lock = threading.Lock()
        self._matched: Counter[int] = Counter()
        self._struck: Counter[int] = Counter()
        self._made: Counter[str] = Counter()
        self._exchanges: list[Exchange] = []

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All requests so far."""
        with self._lock:
            return tuple(self._exchanges)

    def replace(self, faults: Sequence[NetworkFault]) -> None:
        """Go on with other faults; counting begins anew.

        Args:
            faults: As for the constructor.
        """
        with self._lock:
            self.faults = tuple(faults)
            self._matched.clear()
            self._struck.clear()
            self._made.clear()

    def choose(self, request: Message) -> tuple[NetworkFault | None, random.Random]:
        """Find the fault that strikes a request.

        Args:
            request: The request's head.

        Returns:
            The fault or None, and the source of what is random about it.
        """
        query = tuple(
            name + (f"={value}" if value.isdecimal() or name in _SHOWN else "") for name, value in request.query.items()
        )
        path = _RANDOM_ID.sub("*", request.path)
        name = f"{request.method}|{path}|{sorted(query)}|{request.header('range')}"
        with self._lock:
            self._made[name] += 1
            name += f"|{self._made[name]}"
            chosen: int | None = None
            for place, fault in enumerate(self.faults):
                if not fault.matches(request):
                    continue
                self._matched[place] += 1
                if chosen is None and self._strikes_now(place, fault, name):
                    self._struck[place] += 1
                    chosen = place
            fault_chosen = None if chosen is None else self.faults[chosen]
            self._exchanges.append(
                Exchange(
                    number=len(self._exchanges) + 1,
                    method=request.method,
                    path=request.path,
                    query=query,
                    fault=fault_chosen,
                    place=chosen,
                )
            )
        return fault_chosen, random.Random(f"{self.seed}|{name}")

    def _strikes_now(self, place: int, fault: NetworkFault, name: str) -> bool:
        if self._matched[place] < fault.nth or (fault.times is not None and self._struck[place] >= fault.times):
            return False
        return fault.chance is None or random.Random(f"{self.seed}|{place}|{name}").random() < fault.chance
