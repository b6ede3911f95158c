"""Runs one job of the demo on several processes with torchrun, and passes on what the ranks say."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dcp_cloud.demo.messages import Job, Message, MessageReader
from dcp_cloud.errors import DcpCloudError
from dcp_cloud.testing.servers.process import ChildProcess, running

_POLL_S = 0.05
_SILENCE_S = 180.0
"""Longer than the timeout of the ranks' collectives, so that they get to say what is wrong."""


def run_ranks(job: Job, processes: int, listen: Callable[[Message], None]) -> None:
    """Run a job to its end; a job that holds in a save is killed there.

    Nothing is left when this returns or raises: torchrun and the ranks end with their parents.

    Args:
        job: What to do.
        processes: Number of ranks.
        listen: Told of every message of every rank.

    Raises:
        DcpCloudError: A rank failed, or nothing was heard for minutes.
    """
    with tempfile.TemporaryDirectory(prefix="dcp-cloud-demo-") as directory:
        messages = Path(directory, "messages")
        messages.mkdir()
        path = Path(directory, "job.json")
        path.write_text(replace(job, messages=str(messages)).to_json(), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}"),
            # As --standalone, but on 127.0.0.1 whatever the machine takes its own name for.
            *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
            *("-m", "dcp_cloud.demo.rank", str(path)),
        ]
        # One thread of arithmetic each: the ranks share the machine, and more threads would add up in another order.
        # torchrun and torch leave files in the directory for temporary ones.
        # The ranks open the store as this process does; a server, which is started the same way, would not.
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": _import_path(), "TMPDIR": directory}
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        with running(command, name="torchrun", directory=directory, environment=environment) as child:
            _Listener(child, MessageReader(str(messages)), listen, processes).run(must_hold=job.hold_at is not None)


def _import_path() -> str:
    """Let the ranks, which start in another directory, find the package that is running here, installed or not."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


class _Listener:
    """Follows the ranks until they have ended."""

    def __init__(
        self, child: ChildProcess, reader: MessageReader, listen: Callable[[Message], None], processes: int
    ) -> None:
        self._child = child
        self._reader = reader
        self._listen = listen
        self._processes = processes
        self._pids: dict[int, int] = {}
        self._held: set[int] = set()
        self._failure: str | None = None

    def run(self, *, must_hold: bool) -> None:
        heard_s = time.monotonic()
        while True:
            has_ended = self._child.popen.poll() is not None
            messages = self._reader.read()
            for message in messages:
                self._take(message)
            if messages:
                heard_s = time.monotonic()
            if has_ended:
                break
            if must_hold and len(self._held) == self._processes:
                self._kill()
                return
            if time.monotonic() - heard_s > _SILENCE_S:
                raise DcpCloudError(f"the ranks have said nothing for {_SILENCE_S:.0f} s", cause=self._child.log_tail())
            time.sleep(_POLL_S)
        if self._child.popen.returncode != 0 or must_hold:
            raise DcpCloudError("a rank of the training job failed", cause=self._failure or self._child.log_tail())

    def _take(self, message: Message) -> None:
        if message["kind"] == "started":
            self._pids[message["rank"]] = message["pid"]
        elif message["kind"] == "holding":
            self._held.add(message["rank"])
        elif message["kind"] == "failed" and self._failure is None:
            self._failure = str(message["message"])
        self._listen(message)

    def _kill(self) -> None:
        """End all ranks as a power cut would, and wait until torchrun has seen it."""
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._child.popen.wait(timeout=60.0)
        for message in self._reader.read():
            self._take(message)
        self._listen({"kind": "killed", "rank": 0})
