"""moto: an S3 server in Python. The quickest to start, and the one with S3's flexible checksums.

It copies the whole object for each ranged read and never refuses a corrupt body: keep objects below some 64 MiB.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType

from dcp_cloud.testing.servers.access import Access, S3Access
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.process import free_port, http_status, running

# The AWS SDK within moto looks for the user's files, and for a machine's role.
_NOBODY: Mapping[str, str] = MappingProxyType(
    {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
)


class MotoServer(ObjectServer):
    """moto, in a process of its own: it neither shares the tested interpreter's lock nor changes its logging."""

    @property
    def name(self) -> str:
        """``moto``."""
        return "moto"

    def missing(self) -> str | None:
        """Tell the install line if moto or one of its server's packages is not installed."""
        found = all(importlib.util.find_spec(package) for package in ("moto", "flask", "flask_cors"))
        return None if found else "in the clone of dcp-cloud, pip install '.[demo]'"

    def _launch(self, directory: str, resources: ExitStack) -> Access:
        port = free_port()
        child = resources.enter_context(
            running(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                name=self.name,
                directory=directory,
                environment=_NOBODY,
            )
        )
        child.wait_until(lambda: http_status(port, "/moto-api/") == 200)
        return S3Access(endpoint_url=f"http://127.0.0.1:{port}")
