"""Saves and loads that run at the same time in one process share one bound for the memory that is theirs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import pytest

from dcp_cloud.errors import PermissionDeniedError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing.wrappers import Fault, FaultyStore
from dcp_cloud.testing.wrappers.base import Request, StoreWrapper
from dcp_cloud.transfer.budget import PROCESS_BUDGET
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.span import Room, Span
from dcp_cloud.transfer.upload import Uploader
from tests.unit.transfer.tools import config, content, memory_store, random_bytes, wait_until

_PIECE = 16
_LIMIT = 96
_SETTINGS = config(part=_PIECE, concurrency=4, inflight=_LIMIT, gap=0)


class _Memory:
    """Counts the bytes that transfers have made and not yet let go."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def change(self, nbytes: int) -> None:
        with self._lock:
            self.now += nbytes
            self.most = max(self.most, self.now)

    def make(self, data: bytes) -> memoryview:
        block = _Block(data)
        self.change(len(data))
        weakref.finalize(block, self.change, -len(data))
        return memoryview(block)


class _Block(bytearray):
    """Memory whose end is noticed."""


class _Late:
    """Bytes that are made when they are first asked for, and kept as long as the span."""

    def __init__(self, memory: _Memory, data: bytes) -> None:
        self._memory = memory
        self._data = data
        self._made: memoryview | None = None

    def __call__(self) -> memoryview:
        if self._made is None:
            self._made = self._memory.make(self._data)
        return self._made


class _Gate(StoreWrapper):
    """Lets no data request through before the gate is open."""

    def __init__(self, store: ObjectStore, gate: threading.Event) -> None:
        super().__init__(store)
        self._gate = gate

    def around(self, request: Request, run: Callable[[], object]) -> object:
        if request.verb in ("put_part", "get_range"):
            assert self._gate.wait(20)
        return run()


def save(store: ObjectStore, key: str, pieces: list[bytes], memory: _Memory) -> None:
    with Uploader(store, _SETTINGS) as uploader:
        upload = uploader.begin(key, expected_bytes=sum(map(len, pieces)))
        for piece in pieces:
            upload.append(Span(len(piece), _Late(memory, piece), room=Room(len(piece))))
        upload.end()
        uploader.finish()


def load(store: ObjectStore, key: str, nbytes: int, memory: _Memory, got: dict[int, bytes]) -> None:
    def target(start: int) -> Target:
        def done(view: memoryview) -> None:
            got[start] = bytes(view)
            memory.change(-_PIECE)

        return Target(key=key, start=start, nbytes=_PIECE, convert=lambda _view: memory.change(_PIECE), done=done)

    Downloader(store, _SETTINGS).run([target(start) for start in range(0, nbytes, _PIECE)])


def test_two_saves_and_a_load_stay_within_one_bound() -> None:
    """However many run at once, what all of them hold never exceeds the one limit, and all of them end well."""
    inner, gate, memory, got = memory_store(), threading.Event(), _Memory(), {}
    data = random_bytes(40 * _PIECE)
    pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
    inner.put("stored", [memoryview(data)])
    store = _Gate(inner, gate)
    threads = [
        threading.Thread(target=save, args=(store, "one", pieces, memory), daemon=True),
        threading.Thread(target=save, args=(store, "two", pieces, memory), daemon=True),
        threading.Thread(target=load, args=(store, "stored", len(data), memory, got), daemon=True),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(PROCESS_BUDGET._line) == 3, "each has taken what there is and waits for more")
    assert PROCESS_BUDGET.held_bytes == _LIMIT
    gate.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert content(inner, "one") == content(inner, "two") == data
    assert b"".join(got[start] for start in sorted(got)) == data
    assert 0 < memory.most <= _LIMIT
    assert memory.now == PROCESS_BUDGET.held_bytes == 0


def test_a_failed_save_gives_its_bytes_to_the_one_that_waits() -> None:
    """A save that fails while it holds all there is returns every byte, and disturbs no other save."""
    inner, gate, memory = memory_store(), threading.Event(), _Memory()
    pieces = [random_bytes(_PIECE, number) for number in range(20)]
    failing = _Gate(FaultyStore(inner, [Fault("refuse", verb="put_part", nth=3)]), gate)
    failed: list[BaseException] = []

    def fail() -> None:
        with pytest.raises(PermissionDeniedError) as caught:
            save(failing, "failing", pieces, memory)
        failed.append(caught.value)

    first = threading.Thread(target=fail, daemon=True)
    first.start()
    wait_until(lambda: len(PROCESS_BUDGET._line) == 1, "the first has taken what there is and waits for more")
    second = threading.Thread(target=save, args=(inner, "whole", pieces, memory), daemon=True)
    second.start()
    wait_until(lambda: len(PROCESS_BUDGET._line) == 2, "the second waits for the first")
    gate.set()
    for thread in (first, second):
        thread.join(20)
        assert not thread.is_alive()
    assert len(failed) == 1
    failed.clear()  # its traceback keeps the spans of the failed part
    assert content(inner, "whole") == b"".join(pieces)
    assert [meta.key for meta in inner.list()] == ["whole"]
    assert PROCESS_BUDGET.held_bytes == 0
