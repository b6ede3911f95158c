"""Servers to test against and stores that misbehave on purpose; for users' tests too.

The servers run on 127.0.0.1 and need no Docker::

    from dcp_cloud.testing import MotoServer

    with MotoServer() as server:
        server.create_bucket("bucket")
        uri = server.uri("bucket", "run/step-1")  # to be opened with server.environment in the environment

For pytest, :mod:`dcp_cloud.testing.fixtures` has them as fixtures, with a fresh bucket for each test.

The stores that wrap a store are in :mod:`dcp_cloud.testing.wrappers`; the proxy that goes between a real client and a
real server is in :mod:`dcp_cloud.testing.proxy`.
"""

from __future__ import annotations

from dcp_cloud.testing.proxy import Exchange, FaultProxy, NetworkFault
from dcp_cloud.testing.servers import (
    AzuriteServer,
    CephServer,
    ExternalServer,
    FakeGCSServer,
    MotoServer,
    ObjectServer,
    external_servers,
)
from dcp_cloud.testing.wrappers import Fault, FaultyStore, LatencyStore, RecordingStore, SimulatedCrash

__all__ = [
    "AzuriteServer",
    "CephServer",
    "Exchange",
    "ExternalServer",
    "FakeGCSServer",
    "Fault",
    "FaultProxy",
    "FaultyStore",
    "LatencyStore",
    "MotoServer",
    "NetworkFault",
    "ObjectServer",
    "RecordingStore",
    "SimulatedCrash",
    "external_servers",
]
