"""A Ctrl-C at any moment of short transfers, which are over and begun anew all the time."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import pytest

from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.engine import Engine
from dcp_cloud.transfer.events import ignore_event
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader
from tests.unit.transfer.tools import config, memory_store, transfer_threads, wait_until

_PRESSES = 100
_LATEST_S = 0.002
# Python tells nobody of a Ctrl-C that hits a callback of the garbage collector; a user presses again, a test goes on.
_UNHEARD_S = 0.5


@contextmanager
def ctrl_c_soon() -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread within two milliseconds."""
    begin, me, delay_s = SimpleQueue[None](), threading.get_ident(), random.uniform(0, _LATEST_S)

    def press() -> None:
        begin.get()
        time.sleep(delay_s)
        signal.pthread_kill(me, signal.SIGUSR1)  # pytest-timeout needs SIGALRM

    presser = threading.Thread(target=press)
    presser.start()
    former = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        begin.put(None)
        yield
    finally:
        presser.join()
        signal.signal(signal.SIGUSR1, former)


def _load() -> None:
    store = memory_store()
    store.put("a", [memoryview(bytes(1000))])
    target = Target(key="a", start=0, nbytes=1000, memory=memoryview(bytearray(1000)))
    Downloader(store, config(part=1000)).run([target])


def _save() -> None:
    with Uploader(memory_store(), config(part=1000)) as uploader:
        upload = uploader.begin("a", expected_bytes=3000)
        upload.append(Span.of(bytes(3000)))
        upload.end()
        uploader.finish()


def _is_heard(transfer: Callable[[], None]) -> bool:
    until = time.monotonic() + _UNHEARD_S
    try:
        with ctrl_c_soon():
            while time.monotonic() < until:
                transfer()
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("transfer", [_load, _save])
def test_ctrl_c_while_transfers_begin_and_end_leaves_no_thread(transfer: Callable[[], None]) -> None:
    """Whether it hits the beginning, the middle or the end of a transfer: it is raised, and the threads end."""
    heard = sum(_is_heard(transfer) for _ in range(_PRESSES))
    gc.collect()
    wait_until(lambda: transfer_threads() == [], "all threads have ended")
    assert heard > _PRESSES // 2


def test_an_engine_that_is_never_left_takes_its_threads_along() -> None:
    """A Ctrl-C between a block and its exit leaves an engine entered; its threads end with it."""
    engine = Engine(
        memory_store(), config(part=1000), name="dcp_cloud-upload", hook=ignore_event, phase="save", queue_limit=1
    )
    engine.__enter__()
    engine.watch_stalls()
    engine.pool.join()
    wait_until(lambda: "dcp_cloud-deadlines" in transfer_threads(), "the threads have begun")
    del engine
    gc.collect()
    wait_until(lambda: transfer_threads() == [], "all threads have ended")
