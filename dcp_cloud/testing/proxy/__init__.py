"""A network that misbehaves on purpose, between real clients and real servers."""

from __future__ import annotations

from dcp_cloud.testing.proxy.faults import Exchange, NetworkFault
from dcp_cloud.testing.proxy.proxy import FaultProxy

__all__ = ["Exchange", "FaultProxy", "NetworkFault"]
