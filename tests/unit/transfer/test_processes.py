"""Transfers in the places where checkpoints are really saved: background threads, daemonic children."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

_ROUND_TRIP = """
    import threading, sys
    from dcp_cloud.config import TransferConfig
    from dcp_cloud.stores.memory import MemoryStore
    from dcp_cloud.transfer.download import Downloader, Target
    from dcp_cloud.transfer.span import Span
    from dcp_cloud.transfer.upload import Uploader

    def round_trip():
        store, config = MemoryStore("m"), TransferConfig(part_size_bytes=1000, max_concurrency=4)
        data = bytes(range(256)) * 100
        with Uploader(store, config) as uploader:
            upload = uploader.begin("k", expected_bytes=len(data))
            upload.append(Span.of(data))
            upload.end()
            uploader.finish()
        back = bytearray(len(data))
        Downloader(store, config).run([Target(key="k", start=0, nbytes=len(data), memory=memoryview(back))])
        assert back == data
        print("the bytes came back", flush=True)
"""


def run(script: str) -> str:
    """Run a script in a Python of its own and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(_ROUND_TRIP) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3),
    reason="these Pythons start no thread once the main thread has ended: python/cpython#113964",
)
def test_a_transfer_runs_while_the_interpreter_shuts_down() -> None:
    """The last un-awaited ``async_save`` of a job begins its transfer after the main thread has ended."""
    script = """
    def after_main():
        threading.main_thread().join()
        round_trip()

    threading.Thread(target=after_main).start()
    """
    assert run(script) == "the bytes came back\n"


def test_a_transfer_runs_in_a_daemonic_child() -> None:
    """A checkpoint process may have no children of its own, and needs none."""
    script = """
    import multiprocessing

    child = multiprocessing.get_context("fork").Process(target=round_trip, daemon=True)
    child.start()
    child.join(30)
    sys.exit(child.exitcode)
    """
    assert run(script) == "the bytes came back\n"


def test_an_abandoned_transfer_does_not_keep_the_process_alive() -> None:
    """Threads of a transfer are daemons: a process whose main thread ends early, ends."""
    script = """
    from dcp_cloud.transfer.workers import WorkerPool

    pool = WorkerPool(1, queue_limit=1, name="p")
    begun = threading.Event()
    pool.submit(lambda: begun.set() or threading.Event().wait())
    begun.wait()
    print("main ends")
    """
    assert run(script) == "main ends\n"
