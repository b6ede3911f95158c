"""Processes: signals in mid-save, forks, data loaders, torch's checkpoint process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.network import process_jobs
from tests.network.clouds import fault
from tests.network.conftest import Job
from tests.support.ranks import run_ranks, start_fork_server

_ENDED_BY = {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "SystemExit"}


@pytest.mark.parametrize("number", list(_ENDED_BY))
def test_a_signal_in_mid_save_leaves_nothing(job: Job, number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, and a SIGTERM that the job turns into SystemExit: uploads are aborted before the process ends."""
    job.save(job.state(1))
    before = job.contents()
    job.proxy.set_faults(fault("stall", {**job.cloud.part, "times": None}))
    with _running(tmp_path, job, process_jobs.save_until_told, job.uri("run/step-2")) as (process, log):
        _until(lambda: bool(job.proxy.strikes) or process.exitcode is not None)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGABRT)
            process.join(10)
        assert process.exitcode not in (None, 0, -number, -signal.SIGABRT), log.read_text()
        assert _ENDED_BY[number] in log.read_text()
    job.proxy.set_faults()
    assert job.contents() == before
    assert job.load().keys() == job.state(1).keys()


def test_what_was_used_before_a_fork_works_after_it(job: Job, tmp_path: Path) -> None:
    """Writer, reader and store serve parent and child at once: neither speaks on the other's connections."""
    _run(tmp_path, job, process_jobs.use_after_fork, job.uri())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("job", ["s3"], indirect=True)
def test_data_loaders_take_a_used_store(job: Job, method: str, tmp_path: Path) -> None:
    """A data loader's workers read through a store that the main process has used, forked or pickled."""
    _run(tmp_path, job, process_jobs.load_data, job.uri(), method)


@pytest.mark.parametrize("job", ["gcs"], indirect=True)
def test_a_checkpoint_process_leaves_nothing(job: Job) -> None:
    """torch's process mode saves what loads back, and nothing of this package's remains in the main process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_ENDPOINT", job.server.endpoint_url)
        assert run_ranks(1, process_jobs.save_in_a_process, job.uri()) == [{}]


def _run(directory: Path, job: Job, function: Callable[..., object], *args: object) -> None:
    with _running(directory, job, function, *args) as (process, log):
        process.join(120)
        assert process.exitcode == 0, log.read_text()


@contextmanager
def _running(
    directory: Path, job: Job, function: Callable[..., object], *args: object
) -> Iterator[tuple[ForkServerProcess, Path]]:
    environment = {**os.environ, "TEST_ENDPOINT": job.server.endpoint_url}
    log = directory / "log"
    process = start_fork_server().Process(target=process_jobs.run, args=(environment, str(log), function, *args))
    process.start()
    try:
        yield process, log
    finally:
        process.kill()
        process.join()
        process.close()


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")
