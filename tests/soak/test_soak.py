"""Many threads for a long time on each server: what a store takes, it gives back."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dcp_cloud.errors import NotFoundError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing.servers import server_names
from tests.conformance.data import noise
from tests.support.resources import MIB, open_files, resident_bytes

logger = logging.getLogger(__name__)

_THREADS = 32
# Fragments of the allocator come and go by a few MiB; what is kept for each of some 100,000 requests would be more.
_RSS_GROWTH_BYTES = 32 * MIB
_DATA = noise(16 * 1024 + 3)


def _one_round(store: ObjectStore, key: str) -> int:
    """Use every verb on one key and leave nothing; give the number of requests."""
    crc32 = zlib.crc32(_DATA)
    store.put(key, [memoryview(_DATA)[:100], memoryview(_DATA)[100:]], crc32=crc32)
    assert store.head(key).size_bytes == len(_DATA)
    assert store.get(key, max_bytes=len(_DATA)).data == _DATA
    room = bytearray(1000)
    store.get_range(key, 5, [memoryview(room)])
    assert room == _DATA[5:1005]
    upload = store.create_multipart(f"{key}-parts")
    upload.complete([upload.put_part(0, [memoryview(_DATA)], crc32=crc32)])
    store.create_multipart(f"{key}-dropped").abort()
    store.delete([key, f"{key}-parts"])
    with pytest.raises(NotFoundError):  # a refusal, whose answer has to be read to its end as well
        store.get(key, max_bytes=1)
    return 10


class _Soak:
    """Rounds on one store by all threads, until a time."""

    def __init__(self, store: ObjectStore, duration_s: float) -> None:
        self._store = store
        self._duration_s = duration_s
        self._warm = threading.Barrier(_THREADS, action=self._begin)
        self._end_s = 0.0
        self.rss_before = 0

    def _begin(self) -> None:
        gc.collect()
        self.rss_before = resident_bytes()
        self._end_s = time.monotonic() + self._duration_s

    def work(self, number: int) -> int:
        """Warm up, wait for the others, go on until the end; give the number of requests."""
        try:
            _one_round(self._store, f"warm/{number}")
        except BaseException:
            self._warm.abort()  # the others must not wait for this thread
            raise
        self._warm.wait()
        requests = 0
        for index in itertools.count():
            if time.monotonic() >= self._end_s:
                return requests
            requests += _one_round(self._store, f"{number}/{index}")
        raise AssertionError


@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", server_names(os.environ))
def test_what_a_store_takes_it_gives_back(
    bucket_uri: Callable[..., str],
    server: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
):
    """No thread, no socket and no file stays open, and memory does not grow with the number of requests."""
    caplog.set_level(logging.WARNING, "azure")  # what is captured would grow with the number of requests
    uri = bucket_uri(server)
    gc.collect()
    threads_before, files_before = threading.active_count(), open_files()
    store = open_store(uri)
    soak = _Soak(store, request.config.getoption("--soak-s"))
    with ThreadPoolExecutor(_THREADS) as pool:
        requests = sum(pool.map(soak.work, range(_THREADS)))
    gc.collect()
    growth = resident_bytes() - soak.rss_before
    sockets = open_files().get("socket", 0) - files_before.get("socket", 0)
    assert list(store.list()) == []
    assert list(store.list_multiparts()) == []
    store.close()
    gc.collect()
    logger.info("%s: %d requests, %d sockets, %+.1f MiB", server, requests, sockets, growth / MIB)
    assert requests >= 10 * _THREADS
    # One per thread for the bodies, and one per thread for what the SDK sends itself.
    assert sockets <= 2 * _THREADS
    assert threading.active_count() == threads_before
    assert open_files() == files_before
    assert growth < _RSS_GROWTH_BYTES
