"""Every verb of a store, once."""

from __future__ import annotations

from dcp_cloud.stores.base import ObjectStore

DATA = memoryview(b"some data")


def call_all(store: ObjectStore) -> None:
    """Send each kind of request that there is."""
    store.put("k", [DATA])
    upload = store.create_multipart("k")
    upload.complete([upload.put_part(0, [DATA])])
    upload.abort()
    store.head("k")
    store.get("k", max_bytes=4)
    store.get_range("k", 2, [memoryview(bytearray(3))])
    list(store.list("a"))
    list(store.list_prefixes("a"))
    list(store.list_multiparts("a"))
    store.delete(["k"])
    store.delete(["k", "l"])
