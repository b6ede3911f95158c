"""Stores that wrap a store, to see what a job does and what it does when its store misbehaves.

::

    store = RecordingStore(FaultyStore(open_store("memory://b"), [Fault("fail", verb="put_part", nth=3)]))
    dcp.save(state_dict, storage_writer=CloudStorageWriter("memory://b/run", store=store))
    assert [call.verb for call in store.calls if call.error] == ["put_part"]

One seed can decide all of it; ``repr(store)`` is the line that tells what went wrong::

    store = FaultyStore(open_store("memory://b"), draw_faults(17, ["passing", "flips"]), seed=17)
"""

from __future__ import annotations

from dcp_cloud.testing.wrappers.base import Request, StoreWrapper, WrappedUpload
from dcp_cloud.testing.wrappers.draw import Trouble, draw_faults
from dcp_cloud.testing.wrappers.faults import Fault, SimulatedCrash, Strike, describe_faults
from dcp_cloud.testing.wrappers.faulty import FaultyStore
from dcp_cloud.testing.wrappers.latency import LatencyStore
from dcp_cloud.testing.wrappers.recording import Call, RecordingStore

__all__ = [
    "Call",
    "Fault",
    "FaultyStore",
    "LatencyStore",
    "RecordingStore",
    "Request",
    "SimulatedCrash",
    "StoreWrapper",
    "Strike",
    "Trouble",
    "WrappedUpload",
    "describe_faults",
    "draw_faults",
]
