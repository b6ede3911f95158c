"""Azurite: Microsoft's emulator of Azure Blob Storage, close to the original."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack

from dcp_cloud.testing.servers.access import AZURITE_ACCOUNT, Access, AzureAccess
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.process import free_port, http_status, running

AZURITE_VERSION = "3.35.0"
"""Later versions ask for Node 22."""

_PROGRAM = os.path.join("node_modules", ".bin", "azurite-blob")


class AzuriteServer(ObjectServer):
    """Azurite, found in ``$DCP_CLOUD_AZURITE``, in ``./.cache/azurite`` or on PATH.

    Args:
        on_disk: Keep blobs in files. In memory, every overwritten or deleted blob stays until the server stops.
    """

    def __init__(self, *, on_disk: bool = False) -> None:
        super().__init__()
        self._on_disk = on_disk

    @property
    def name(self) -> str:
        """``azurite``."""
        return "azurite"

    def missing(self) -> str | None:
        """Tell the install line if Azurite or Node.js is not installed."""
        found = _find_program() is not None and shutil.which("node") is not None
        return None if found else f"npm install --prefix .cache/azurite azurite@{AZURITE_VERSION}"

    def _launch(self, directory: str, resources: ExitStack) -> Access:
        port = free_port()
        blobs = os.path.join(directory, "blobs")
        memory = ["--inMemoryPersistence", "--extentMemoryLimit", "8192"]  # MiB
        child = resources.enter_context(
            running(
                [
                    str(shutil.which("node")),
                    os.path.realpath(str(_find_program())),
                    *("--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--disableTelemetry"),
                    # The SDK asks for a newer version of the protocol than Azurite knows.
                    "--skipApiVersionCheck",
                    *(["--location", blobs] if self._on_disk else memory),
                ],
                name=self.name,
                directory=directory,
            )
        )
        child.wait_until(lambda: http_status(port) is not None)
        return AzureAccess(endpoint_url=f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}")


def _find_program() -> str | None:
    for root in (os.environ.get("DCP_CLOUD_AZURITE"), os.path.join(os.getcwd(), ".cache", "azurite")):
        if root and os.path.exists(os.path.join(root, _PROGRAM)):
            return os.path.join(root, _PROGRAM)
    return shutil.which("azurite-blob")
