"""Ways to damage a checkpoint in a bucket."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from dcp_cloud.stores.memory import MemoryStore


def data_keys(store: MemoryStore, checkpoint: str) -> list[str]:
    return sorted(meta.key for meta in store.list(checkpoint) if meta.key.endswith(".distcp"))


def content(store: MemoryStore, key: str) -> bytearray:
    return bytearray(store.get(key, max_bytes=1 << 30).data)


def rewrite(store: MemoryStore, key: str, change: Callable[[bytearray], bytes | bytearray]) -> None:
    store.put(key, [memoryview(change(content(store, key)))])


def flip(store: MemoryStore, key: str, position: int) -> None:
    def change(data: bytearray) -> bytearray:
        data[position] ^= 0x10
        return data

    rewrite(store, key, change)


def edit_metadata(store: MemoryStore, key: str, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads(content(store, key))
    change(metadata)
    store.put(key, [memoryview(pickle.dumps(metadata, protocol=4))])
