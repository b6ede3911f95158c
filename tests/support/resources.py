"""What this process holds: memory, threads, open files and sockets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

MIB = 1024**2
_SAMPLE_S = 0.02


@dataclass
class PeakMemory:
    """Growth of the resident memory while it was watched.

    Args:
        growth_bytes: Highest minus first value.
    """

    growth_bytes: int = 0


@contextmanager
def watched_memory() -> Iterator[PeakMemory]:
    """Sample this process's resident memory until the block ends."""
    process, done, peak = psutil.Process(), threading.Event(), PeakMemory()
    first = process.memory_info().rss

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            peak.growth_bytes = max(peak.growth_bytes, process.memory_info().rss - first)

    watcher = threading.Thread(target=watch, name="memory-watcher")
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def open_files() -> dict[str, int]:
    """Count open descriptors by kind: ``socket``, ``pipe``, ``anon_inode``, or the path of a file."""
    counts: dict[str, int] = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
        kind = target if target.startswith("/") else target.partition(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return counts
