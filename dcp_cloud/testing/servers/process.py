"""Child processes that are ready when they are handed over, leave a log when they fail, and leave nothing else."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.testing.servers import guard

_LOG_TAIL_BYTES = 2000
_POLL_S = 0.02
# The coverage tool starts itself in each Python child that inherits its variables, and the servers are not what is
# tested. moto uses the AWS SDK: where its user names a profile that is not set up, it answers 500 instead of refusing.
_NOT_INHERITED = ("COVERAGE_", "AWS_")


class ServerEndedError(DcpCloudError):
    """A server's process ended before it was ready, for example because another program took its port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """A running child process.

    Args:
        name: What to call it in messages.
        log_path: File that receives its standard output and standard error.
        popen: The guard that holds it.
    """

    name: str
    log_path: str
    popen: subprocess.Popen[bytes]

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
        """Wait for a condition while this very process is alive.

        A port may be answered by somebody else's server, so an answer counts only if our own process lives after it.

        Args:
            is_ready: Asks once, quickly, and does not raise.
            timeout_s: How long to ask, seconds.

        Raises:
            ServerEndedError: The process ended; the message holds the end of its log.
            DcpCloudError: It lives, and is not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ready = is_ready()
            if self.popen.poll() is not None:
                raise ServerEndedError(
                    f"{self.name} ended with exit code {self.popen.returncode} before it was ready",
                    cause=self.log_tail(),
                )
            if ready:
                return
            time.sleep(_POLL_S)
        raise DcpCloudError(f"{self.name} was not ready within {timeout_s:.0f} s", cause=self.log_tail())

    def log_tail(self) -> str:
        """Read the end of the log, a few screens at most."""
        with open(self.log_path, "rb") as log:
            log.seek(max(0, os.path.getsize(self.log_path) - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip() or "its log is empty"


@contextmanager
def running(
    command: Sequence[str],
    *,
    name: str,
    directory: str,
    environment: Mapping[str, str] | None = None,
    grace_s: float = 10.0,
) -> Iterator[ChildProcess]:
    """Start a command; end it, and wait for its end, on leaving. It also ends if this process dies, however that is.

    Args:
        command: Program and arguments.
        name: What to call it in messages, and its log ``NAME.log``.
        directory: Where the log goes; the working directory of the command.
        environment: Variables to set in addition to this process's own, of which the coverage tool's and the user's
            settings for Amazon are left out.
        grace_s: Seconds that it has to end after SIGTERM before it gets SIGKILL.

    Yields:
        The running process, not yet known to be ready.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_INHERITED)}
    log_path = os.path.join(directory, f"{name}.log")
    with open(log_path, "wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(grace_s), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=inherited | dict(environment or {}),
            start_new_session=True,  # Ctrl-C in the terminal is for the tests; they end their servers in order
        )
    try:
        yield ChildProcess(name=name, log_path=log_path, popen=popen)
    finally:
        _stop(popen, timeout_s=grace_s + 5.0)


def _stop(popen: subprocess.Popen[bytes], *, timeout_s: float) -> None:
    if popen.stdin is not None:
        with suppress(BrokenPipeError):
            popen.stdin.close()
    try:
        popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def run_tool(command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 60.0) -> None:
    """Run a command that ends by itself, such as one that prepares a server's directory.

    Args:
        command: Program and arguments.
        environment: Variables to set in addition to this process's own.
        timeout_s: How long it may take, seconds.

    Raises:
        DcpCloudError: It failed or took too long; the message holds the end of its output.
    """
    try:
        subprocess.run(
            list(command),
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        output = (error.stdout or b"")[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        raise DcpCloudError(f"{command[0]} failed", cause=output or error) from error


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 that nobody uses now. Somebody may before you do: see ``ServerEndedError``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_status(port: int, path: str = "/") -> int | None:
    """Ask a server of this machine for a page.

    Args:
        port: TCP port on 127.0.0.1.
        path: Path of the page.

    Returns:
        The HTTP status, or None if there was no answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
