"""Object servers that run on this machine, started in a second or less and gone without a trace."""

from __future__ import annotations

from dcp_cloud.testing.servers.access import Access, AzureAccess, GCSAccess, S3Access
from dcp_cloud.testing.servers.azurite import AzuriteServer
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.ceph import CephServer
from dcp_cloud.testing.servers.external import ExternalServer, external_servers
from dcp_cloud.testing.servers.fake_gcs import FakeGCSServer
from dcp_cloud.testing.servers.moto import MotoServer
from dcp_cloud.testing.servers.pool import LOCAL_SERVERS, ServerPool, joining_servers, server_names

__all__ = [
    "LOCAL_SERVERS",
    "Access",
    "AzureAccess",
    "AzuriteServer",
    "CephServer",
    "ExternalServer",
    "FakeGCSServer",
    "GCSAccess",
    "MotoServer",
    "ObjectServer",
    "S3Access",
    "ServerPool",
    "external_servers",
    "joining_servers",
    "server_names",
]
