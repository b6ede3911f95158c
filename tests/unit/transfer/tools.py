"""What the tests of the transfer floor share: small configurations, bytes, and waiting for a condition."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable

from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.stores.base import ObjectStore, StoreLimits
from dcp_cloud.stores.memory import MemoryStore

# No pauses: what a pause is like is tested with a clock of the test's own.
AT_ONCE = RetryConfig(max_attempts=4, base_delay_s=0, max_delay_s=0)


def memory_store(**limits: int) -> MemoryStore:
    """Make an empty store of its own name; its limits are wide where they are not given."""
    wide = {
        "min_part_bytes": 1,
        "max_part_bytes": 1 << 30,
        "max_parts": 10_000,
        "max_put_bytes": 1 << 30,
        "max_object_bytes": 1 << 40,
    }
    return MemoryStore(uuid.uuid4().hex, limits=StoreLimits(**(wide | limits)))


def config(
    part: int = 16, concurrency: int = 4, inflight: int = 1 << 20, gap: int = 4, retry: RetryConfig = AT_ONCE
) -> TransferConfig:
    """Make a configuration of small numbers of bytes."""
    return TransferConfig(
        part_size_bytes=part,
        max_concurrency=concurrency,
        max_inflight_bytes=inflight,
        max_gap_bytes=gap,
        retry=retry,
    )


def random_bytes(length: int, seed: int = 0) -> bytes:
    """Give bytes that are the same in every run and differ from their neighbours."""
    return random.Random(seed).randbytes(length)


def content(store: ObjectStore, key: str) -> bytes:
    """Read an object whole."""
    return store.get(key, max_bytes=1 << 40).data


def keys(store: ObjectStore) -> set[str]:
    """List the keys of a store."""
    return {meta.key for meta in store.list()}


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a condition that another thread brings about."""
    end_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end_s, f"waited in vain until {what}"
        time.sleep(0.001)


def transfer_threads() -> list[str]:
    """Name the running threads of transfers."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dcp_cloud-")]
