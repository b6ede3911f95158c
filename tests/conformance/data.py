"""Bytes for the tests."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from dcp_cloud.stores.base import MultipartUpload, ObjectMeta, ObjectStore, Part


def noise(size_bytes: int, *, seed: int = 0) -> bytes:
    """Bytes that no wrong order, offset or repetition leaves the same."""
    return random.Random(seed).randbytes(size_bytes)


def cut(data: bytes, *sizes: int) -> list[memoryview]:
    """Cut data into buffers of these lengths and a rest."""
    view, pieces = memoryview(data), []
    for size in sizes:
        pieces.append(view[:size])
        view = view[size:]
    return [*pieces, view]


def room(*sizes: int) -> tuple[list[bytearray], list[memoryview]]:
    """Make buffers to be filled, and their views."""
    arrays = [bytearray(size) for size in sizes]
    return arrays, [memoryview(array) for array in arrays]


def put(store: ObjectStore, key: str, data: bytes) -> ObjectMeta:
    """Store an object."""
    return store.put(key, [memoryview(data)], crc32=zlib.crc32(data))


def part_contents(store: ObjectStore, count: int) -> list[bytes]:
    """Make the contents of parts: as short as the store allows, the last one shorter still."""
    size = max(store.limits.min_part_bytes, 70_000)
    return [noise(size if index < count - 1 else 1234, seed=index) for index in range(count)]


def put_parts(upload: MultipartUpload, contents: Sequence[bytes], order: Sequence[int]) -> list[Part]:
    """Send parts in an order; give the receipts by index."""
    receipts = {}
    for index in order:
        data = contents[index]
        receipts[index] = upload.put_part(index, cut(data, 100), crc32=zlib.crc32(data))
    return [receipts[index] for index in sorted(receipts)]
