"""Objects far larger than the memory that they may take, up in parallel parts and down in parallel ranges."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from dcp_cloud.config import TransferConfig
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import AzuriteServer, CephServer, FakeGCSServer, ObjectServer
from dcp_cloud.testing.servers import server_names
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader
from tests.support.resources import MIB, watched_memory

_PART_BYTES = 16 * MIB
_CONFIG = TransferConfig(part_size_bytes=_PART_BYTES, max_concurrency=6, max_inflight_bytes=96 * MIB)
# Neither a divisor of the parts' length nor a round number.
_RANGE_BYTES = 11 * MIB + 13
# The budget, a socket buffer and a read-ahead for each thread, and what the allocator does not give back.
_ROOM_BYTES = _CONFIG.max_inflight_bytes + 64 * MIB
_SHIFT_BYTES = 4099


@dataclass(frozen=True)
class Pattern:
    """The content of an object that nobody has to hold: part ``i`` is noise, shifted by ``i`` times a prime.

    Args:
        size_bytes: Length of the object.
        noise: One part and all shifts.
    """

    size_bytes: int
    noise: bytes

    @classmethod
    def of(cls, size_bytes: int) -> Pattern:
        """Make a pattern in the memory of little more than a part."""
        shifts = -(-size_bytes // _PART_BYTES) * _SHIFT_BYTES
        return cls(size_bytes, random.Random(size_bytes).randbytes(_PART_BYTES + shifts))

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Give the bytes from ``start`` to ``stop``, without a copy."""
        while start < stop:
            index, offset = divmod(start, _PART_BYTES)
            length = min(stop - start, _PART_BYTES - offset)
            first = index * _SHIFT_BYTES + offset
            yield memoryview(self.noise)[first : first + length]
            start += length

    def crc32(self, start: int, stop: int) -> int:
        """Compute the checksum of a stretch."""
        crc = 0
        for piece in self.pieces(start, stop):
            crc = zlib.crc32(piece, crc)
        return crc


def _upload(store: ObjectStore, pattern: Pattern) -> None:
    with Uploader(store, _CONFIG) as uploader:
        upload = uploader.begin("big", expected_bytes=pattern.size_bytes)
        for piece in pattern.pieces(0, pattern.size_bytes):
            upload.append(Span.of(piece))
        upload.end()
        uploader.finish()


def _verify(store: ObjectStore, pattern: Pattern) -> int:
    """Read everything back and compare; give the number of ranges that were right."""
    right: list[int] = []

    def target(start: int) -> Target:
        stop = min(start + _RANGE_BYTES, pattern.size_bytes)

        def compare(memory: memoryview) -> None:
            assert zlib.crc32(memory) == pattern.crc32(start, stop), f"wrong bytes between {start} and {stop}"
            right.append(start)

        return Target(key="big", start=start, nbytes=stop - start, convert=compare)

    Downloader(store, _CONFIG).run([target(start) for start in range(0, pattern.size_bytes, _RANGE_BYTES)])
    return len(right)


def _round_trip(uri: str, size_bytes: int) -> None:
    pattern = Pattern.of(size_bytes)
    store = open_store(uri)
    with watched_memory() as peak:
        _upload(store, pattern)
        assert store.head("big").size_bytes == size_bytes
        ranges = _verify(store, pattern)
    store.delete(["big"])
    store.close()
    assert ranges == -(-size_bytes // _RANGE_BYTES)
    assert peak.growth_bytes < _ROOM_BYTES


# moto copies the whole object for each range.
@pytest.mark.parametrize("server", [name for name in server_names(os.environ) if name != "moto"])
def test_an_object_of_many_parts_needs_the_memory_of_a_few(bucket_uri: Callable[..., str], server: str):
    """Content arrives whole and in order, whatever the lengths of parts and ranges, within the transfer's budget."""
    _round_trip(bucket_uri(server), 128 * MIB + 5)


@contextmanager
def _own_server(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.create_bucket("bucket")
        yield server.uri("bucket", "run")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("make", "size_bytes"),
    [
        pytest.param(lambda: CephServer(objectstore="bluestore"), 1100 * MIB + 7, id="ceph"),
        pytest.param(lambda: AzuriteServer(on_disk=True), 1100 * MIB + 7, id="azurite"),
        # Composing, it holds the object several times over.
        pytest.param(lambda: FakeGCSServer(on_disk=True), 256 * MIB + 7, id="fake-gcs"),
    ],
)
def test_an_object_of_more_than_a_gib(
    make: Callable[[], ObjectServer], size_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    """The same beyond the lengths that fit into 30 bits, on servers that keep objects on disk."""
    with _own_server(make(), monkeypatch) as uri:
        _round_trip(uri, size_bytes)
