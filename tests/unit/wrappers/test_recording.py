from __future__ import annotations

import pickle
import threading
import time
import uuid

import pytest

from dcp_cloud.errors import NotFoundError
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers import Call, LatencyStore, RecordingStore

DATA = memoryview(b"0123456789")


def new_store() -> RecordingStore:
    return RecordingStore(MemoryStore(uuid.uuid4().hex))


def test_calls_say_what_was_asked_and_what_became_of_it() -> None:
    """Verb, key, offset, index, bytes moved, thread and error of each request, in the order in which they ended."""
    store = new_store()
    store.put("k", [DATA])
    store.get("k", max_bytes=99)
    store.get_range("k", 3, [memoryview(bytearray(4))])
    upload = store.create_multipart("p")
    upload.put_part(5, [DATA])
    with pytest.raises(NotFoundError):
        store.head("missing")
    me = threading.current_thread().name
    nothing = {"start": 0, "index": 0, "size_bytes": 0, "thread": me, "error": None}
    assert store.calls == (
        Call(**{**nothing, "verb": "put", "key": "k", "size_bytes": 10}),
        Call(**{**nothing, "verb": "get", "key": "k", "size_bytes": 10}),
        Call(**{**nothing, "verb": "get_range", "key": "k", "start": 3, "size_bytes": 4}),
        Call(**{**nothing, "verb": "create_multipart", "key": "p"}),
        Call(**{**nothing, "verb": "put_part", "key": "p", "index": 5, "size_bytes": 10}),
        Call(**{**nothing, "verb": "head", "key": "missing", "error": "NotFoundError"}),
    )
    assert store.count("put") == 1
    store.clear()
    assert store.calls == ()


def test_many_threads_lose_no_call() -> None:
    """Every request of every thread is remembered under the thread's name."""
    store = new_store()

    def work() -> None:
        for number in range(200):
            store.put(f"{threading.current_thread().name}/{number}", [DATA])

    threads = [threading.Thread(target=work, name=f"t{number}", daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(store.calls) == 1600
    assert all(call.key.startswith(f"{call.thread}/") for call in store.calls)


def test_a_pickled_copy_begins_with_no_calls() -> None:
    """What happens in another process is remembered there."""
    store = new_store()
    store.put("k", [DATA])
    copy = pickle.loads(pickle.dumps(store))
    assert copy.calls == ()
    copy.head("k")
    assert (len(copy.calls), len(store.calls)) == (1, 1)


def test_latency_is_per_request_and_by_bytes() -> None:
    """A request takes at least the time to its first byte and the time that its bytes take."""
    store = LatencyStore(MemoryStore(uuid.uuid4().hex), first_byte_s=0.02, bytes_per_s=500)
    began_s = time.monotonic()
    store.put("k", [DATA])
    assert time.monotonic() - began_s >= 0.04
    began_s = time.monotonic()
    store.get("k", max_bytes=1_000_000)
    assert 0.04 <= time.monotonic() - began_s < 1000, "what was received counts, not what was allowed"
    began_s = time.monotonic()
    store.head("k")
    assert time.monotonic() - began_s >= 0.02


def test_requests_do_not_slow_one_another_down() -> None:
    """Every connection has the rate for itself: ten requests at once take about as long as one."""
    store = LatencyStore(MemoryStore(uuid.uuid4().hex), first_byte_s=0.2)
    threads = [threading.Thread(target=store.put, args=(f"k{n}", [DATA]), daemon=True) for n in range(10)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert time.monotonic() - began_s < 10 * 0.2
