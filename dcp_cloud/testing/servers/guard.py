"""Run a command that must not outlive whoever started it: ``python guard.py GRACE_S COMMAND...``.

The guard is the parent of the command and holds the read end of a pipe, as its standard input, whose write end only the
starter has. When the starter closes the pipe, or dies in whatever way, the guard ends the command. A death signal asked
for by the command itself (``PR_SET_PDEATHSIG``) would not do: Linux sends it when the *thread* that started the command
ends, and setting it up between fork and exec is not safe in a starter with threads. The guard has one thread only, so
it can use the signal for the case that it is killed itself.

Imports the standard library only, so that it starts in some 20 ms with ``python -I -S``.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere do nothing."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only where it is used: it costs as much as the rest of the start

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(grace_s: float, command: list[str]) -> int:
    """Run a command until it ends or standard input is closed.

    Args:
        grace_s: Seconds that the command has to end after SIGTERM before it gets SIGKILL.
        command: Program and arguments.

    Returns:
        The command's exit code; 128 plus the number of the signal that ended it.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    guard = os.getpid()

    def die_with_guard() -> None:
        die_with_parent()
        if os.getppid() != guard:  # it was killed before the signal was asked for, which will not come
            os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)  # noqa: PLW1509 - one thread
    select.select([0, wake_read], [], [])
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
