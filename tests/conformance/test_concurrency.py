"""Many threads on one store."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

from dcp_cloud.stores.base import ObjectStore
from tests.conformance.data import noise, part_contents
from tests.conformance.oracles import Oracle

_THREADS = 16


def test_many_threads_put_and_get(store: ObjectStore):
    """Every thread reads back what it wrote, whole and its own."""

    def work(number: int) -> bool:
        data = noise(20_000 + number, seed=number)
        store.put(f"k/{number}", [memoryview(data)], crc32=zlib.crc32(data))
        buffer = bytearray(len(data) - 7)
        store.get_range(f"k/{number}", 7, [memoryview(buffer)])
        return buffer == data[7:] and store.get(f"k/{number}", max_bytes=50_000).data == data

    with ThreadPoolExecutor(_THREADS) as pool:
        assert all(pool.map(work, range(64)))
    assert len(list(store.list("k"))) == 64


def test_many_threads_send_the_parts_of_one_upload(store: ObjectStore, oracle: Oracle):
    """Parts of one upload go up side by side."""
    contents = part_contents(store, 6)
    upload = store.create_multipart("a")

    def send(index: int):
        return upload.put_part(index, [memoryview(contents[index])], crc32=zlib.crc32(contents[index]))

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(send, range(len(contents))))
    upload.complete(parts)
    assert oracle.read("a") == b"".join(contents)


def test_many_threads_read_ranges_of_one_object(store: ObjectStore, oracle: Oracle):
    """Ranges of one object come down side by side, each into its place."""
    data = noise(1_000_000)
    oracle.seed("a", data)
    target = bytearray(len(data))
    step = 31_250

    def fetch(start: int) -> None:
        store.get_range("a", start, [memoryview(target)[start : start + step]])

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fetch, range(0, len(data), step)))
    assert target == data
