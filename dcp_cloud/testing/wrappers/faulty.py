"""A store that misbehaves as written, or at random in a way that can be repeated."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from dcp_cloud.errors import PermissionDeniedError, ThrottledError, TransientError
from dcp_cloud.stores.base import ObjectData, ObjectMeta, ObjectStore
from dcp_cloud.testing.wrappers.base import Request, StoreWrapper
from dcp_cloud.testing.wrappers.faults import Fault, SimulatedCrash, Strike, describe_faults

ResultT = TypeVar("ResultT")

# EX_SOFTWARE of sysexits.h: told apart from the exit codes of Python and of signals.
_EXIT_CODE = 70
# Ids in keys differ from run to run; what a seed decides must not.
_RANDOM_ID = re.compile(r"[0-9a-f]{8,}(?:-[0-9a-f]{4,})*")


class FaultyStore(StoreWrapper):
    """Strikes requests with faults.

    What a fault with a ``chance`` does follows from the seed, the request and how often that same request was made:
    not from the order of threads, so the same job with the same seed meets the same faults. A pickled copy starts to
    count anew.

    Args:
        store: The wrapped store.
        faults: What goes wrong; of several that would strike a request, the first one does.
        seed: Decides what is left to chance.
    """

    def __init__(self, store: ObjectStore, faults: Sequence[Fault], *, seed: int = 0) -> None:
        super().__init__(store)
        self.faults = tuple(faults)
        self.seed = seed
        self._lock = threading.Lock()
        self._matched: Counter[int] = Counter()
        self._struck: Counter[int] = Counter()
        self._made: Counter[str] = Counter()
        self._strikes: list[Strike] = []
        self._listings: dict[tuple[str, str], list[object]] = {}
        self._has_crashed = False

    def __reduce__(self) -> tuple[Callable[..., FaultyStore], tuple[ObjectStore, Sequence[Fault], int]]:
        return _reopen, (self.store, self.faults, self.seed)

    def __repr__(self) -> str:
        return f"<FaultyStore {self.uri} seed={self.seed}: {describe_faults(self.faults)}>"

    @property
    def strikes(self) -> tuple[Strike, ...]:
        """The faults that struck so far."""
        with self._lock:
            return tuple(self._strikes)

    def revive(self) -> None:
        """Answer again after a ``crash``."""
        self._has_crashed = False

    def around(self, request: Request, run: Callable[[], ResultT]) -> ResultT:
        """Make one request, or what the faults leave of it."""
        if self._has_crashed:
            raise SimulatedCrash("the process is dead")
        fault, draw = self._choose(request)
        if fault is not None and fault.delay_s:
            time.sleep(fault.delay_s)
        if fault is not None and fault.when == "before":
            self._end(fault, request)
        if fault is None:
            result = run()
        elif fault.kind == "truncate":
            result = _truncated(request, run)
        elif fault.kind == "flip_bit":
            result = _with_wrong_bit(request, run(), draw)
        elif fault.kind in ("rot", "cut"):
            result = self._damaged(fault, run(), draw)
        else:
            result = self._listed(request, run, fault)
        if fault is not None and fault.when == "after":
            self._end(fault, request)
        if isinstance(result, list):
            self._listings[request.verb, request.key] = result
        return result

    def _choose(self, request: Request) -> tuple[Fault | None, random.Random]:
        """Find the fault that strikes, and the source of what is random about it."""
        with self._lock:
            name = f"{request.verb}|{_RANDOM_ID.sub('*', request.key)}|{request.start}|{request.index}"
            self._made[name] += 1
            name += f"|{self._made[name]}"
            chosen: Fault | None = None
            for place, fault in enumerate(self.faults):
                if not fault.matches(request):
                    continue
                self._matched[place] += 1
                if chosen is None and self._strikes_now(place, fault, name):
                    self._struck[place] += 1
                    self._strikes.append(Strike(fault, request.verb, request.key, request.start, request.index))
                    chosen = fault
            return chosen, random.Random(f"{self.seed}|{name}")

    def _strikes_now(self, place: int, fault: Fault, name: str) -> bool:
        if self._matched[place] < fault.nth or (fault.times is not None and self._struck[place] >= fault.times):
            return False
        return fault.chance is None or random.Random(f"{self.seed}|{place}|{name}").random() < fault.chance

    def _end(self, fault: Fault, request: Request) -> None:
        """End the request here, if that is what the fault does."""
        what, key = f"{request.verb} failed on purpose", request.key
        if fault.kind == "fail":
            raise TransientError(what, key=key)
        if fault.kind == "throttle":
            raise ThrottledError(what, key=key, retry_after_s=fault.retry_after_s)
        if fault.kind == "refuse":
            raise PermissionDeniedError(what, key=key)
        if fault.kind == "crash":
            self._has_crashed = True
            raise SimulatedCrash(f"{request.verb} {key}")
        if fault.kind == "exit":
            os._exit(_EXIT_CODE)
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def _damaged(self, fault: Fault, result: ResultT, draw: random.Random) -> ResultT:
        """Put the damaged object in the place of the one that was just written."""
        assert isinstance(result, ObjectMeta)
        if result.size_bytes == 0:
            return result
        data = bytearray(self.store.get(result.key, max_bytes=result.size_bytes).data)
        if fault.kind == "rot":
            _flip([memoryview(data)], draw)
        else:
            del data[len(data) // 2 :]
        return cast("ResultT", self.store.put(result.key, [memoryview(data)]))

    def _listed(self, request: Request, run: Callable[[], ResultT], fault: Fault) -> ResultT:
        if fault.kind == "stale_list":
            return cast("ResultT", list(self._listings.get((request.verb, request.key), ())))
        result = run()
        if fault.kind == "short_list" and isinstance(result, list):
            return cast("ResultT", result[: len(result) // 2])
        return result


def _truncated(request: Request, run: Callable[[], ResultT]) -> ResultT:
    whole = [bytes(buffer) for buffer in request.room]
    run()
    left = request.size_bytes // 2
    for buffer, before in zip(request.room, whole, strict=True):
        arrived = min(left, len(buffer))
        buffer[arrived:] = before[arrived:]
        left -= arrived
    raise TransientError("the answer broke off on purpose", key=request.key)


def _with_wrong_bit(request: Request, result: ResultT, draw: random.Random) -> ResultT:
    if isinstance(result, ObjectData):
        data = bytearray(result.data)
        _flip([memoryview(data)], draw)
        return cast("ResultT", replace(result, data=bytes(data)))
    _flip(request.room, draw)
    return result


def _flip(buffers: Sequence[memoryview], draw: random.Random) -> None:
    size_bytes = sum(map(len, buffers))
    place = draw.randrange(size_bytes) if size_bytes else -1
    for buffer in buffers:
        if 0 <= place < len(buffer):
            buffer[place] ^= 1 << draw.randrange(8)
            return
        place -= len(buffer)


def _reopen(store: ObjectStore, faults: Sequence[Fault], seed: int) -> FaultyStore:
    return FaultyStore(store, faults, seed=seed)
