"""Slow requests are raced by a second one; the first answer counts and the loser is broken off."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import TransientError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.cancel import current_scope
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers.base import StoreWrapper
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.hedge import Hedger


def until_broken_off() -> None:
    """Wait like a request that gets no answer: until its scope is cancelled."""
    scope, broken = current_scope(), threading.Event()
    assert scope is not None
    scope.add(broken.set)
    assert broken.wait(20), "nobody broke the slow request off"
    raise TransientError("broken off")


def warmed() -> Hedger:
    hedger = Hedger()
    for _ in range(20):
        hedger.run(lambda _turn: None, 1000)
    return hedger


def test_the_second_run_wins_and_the_first_is_broken_off() -> None:
    """A request that hangs is answered by its second run."""

    def request(turn: int) -> str:
        if turn == 0:
            until_broken_off()
        return f"turn {turn}"

    with warmed() as hedger:
        assert hedger.run(request, 1000) == "turn 1"
        assert hedger.hedges == 1


def test_the_first_run_wins_and_the_second_is_broken_off() -> None:
    """When the first run answers after all, the second is ended and awaited before the hedger is left."""
    second_began, ended = threading.Event(), threading.Event()

    def request(turn: int) -> str:
        if turn == 0:
            assert second_began.wait(20)
            return "first"
        second_began.set()
        try:
            until_broken_off()
        finally:
            ended.set()
        return "second"

    with warmed() as hedger:
        assert hedger.run(request, 1000) == "first"
    assert ended.is_set()


def test_when_both_fail_the_first_error_counts() -> None:
    """A race that nobody wins raises what the first run raised."""
    second_failed = threading.Event()

    def request(turn: int) -> str:
        if turn == 0:
            assert second_failed.wait(20)
            raise ValueError("first")
        second_failed.set()
        raise ValueError("second")

    with warmed() as hedger, pytest.raises(ValueError, match="first"):
        hedger.run(request, 1000)


def test_few_requests_are_sent_twice() -> None:
    """Of many slow requests only a twentieth may be raced."""
    gates = [threading.Event() for _ in range(6)]
    turns: list[int] = []

    def slow(gate: threading.Event) -> Callable[[int], None]:
        def request(turn: int) -> None:
            turns.append(turn)
            if turn == 0:
                assert gate.wait(20)
            else:
                for other in gates:
                    other.set()

        return request

    with warmed() as hedger:
        threads = [threading.Thread(target=hedger.run, args=(slow(gate), 1000)) for gate in gates]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert 1 <= hedger.hedges <= 3
    assert turns.count(0) == 6


class _OneHangs(StoreWrapper):
    """The first read of one range hangs until it is broken off, with half of its bytes in place."""

    def __init__(self, store: MemoryStore, start: int) -> None:
        super().__init__(store)
        self._start = start
        self._has_hung = False

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        if start == self._start and not self._has_hung:
            self._has_hung = True
            buffers[0][: len(buffers[0]) // 2] = bytes(len(buffers[0]) // 2)
            until_broken_off()
        self.store.get_range(key, start, buffers, if_match=if_match)


def test_a_load_is_not_held_up_by_one_hanging_read() -> None:
    """The bytes of a read that hung come from its second run and land where they belong, gaps included."""
    data = bytes(range(256)) * (96 * 1024)
    store = MemoryStore(name="hedge-test")
    store.put("k", [memoryview(data)])
    step = MIB // 4
    memories = [bytearray(step - 100) for _ in range(96)]
    targets = [
        Target(key="k", start=i * step, nbytes=step - 100, memory=memoryview(memory))
        for i, memory in enumerate(memories)
    ]
    config = TransferConfig(part_size_bytes=MIB, max_concurrency=2, max_gap_bytes=200)
    Downloader(_OneHangs(store, 80 * step), config).run(targets)
    assert all(memory == data[i * step : (i + 1) * step - 100] for i, memory in enumerate(memories))
