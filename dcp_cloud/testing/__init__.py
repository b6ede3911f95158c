"""Servers to test against and stores that misbehave on purpose; for users' tests too.

The servers run on 127.0.0.1 and need no Docker::

    from dcp_cloud.testing import MotoServer

    with MotoServer() as server:
        server.create_bucket("bucket")
        uri = server.uri("bucket", "run/step-1")  # to be opened with server.environment in the environment
"""

from __future__ import annotations

from dcp_cloud.testing.servers import (
    AzuriteServer,
    CephServer,
    ExternalServer,
    FakeGCSServer,
    MotoServer,
    ObjectServer,
    external_servers,
)

__all__ = [
    "AzuriteServer",
    "CephServer",
    "ExternalServer",
    "FakeGCSServer",
    "MotoServer",
    "ObjectServer",
    "external_servers",
]
