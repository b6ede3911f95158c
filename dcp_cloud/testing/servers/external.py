"""Servers that somebody else started, for example with ``docker/compose.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from dcp_cloud.testing.servers.access import Access, AzureAccess, GCSAccess, S3Access
from dcp_cloud.testing.servers.base import ObjectServer

MINIO_ENDPOINT = "DCP_CLOUD_TEST_MINIO_ENDPOINT"
GCS_ENDPOINT = "DCP_CLOUD_TEST_GCS_ENDPOINT"
AZURE_ENDPOINT = "DCP_CLOUD_TEST_AZURE_ENDPOINT"
"""Variables that hold the base URL of a running server; Azure's ends with the name of the account."""


class ExternalServer(ObjectServer):
    """A server that is already running; starting and stopping it does nothing.

    Args:
        name: What it is called in messages.
        access: Address and credentials.
    """

    def __init__(self, *, name: str, access: Access) -> None:
        super().__init__()
        self._name = name
        self._given = access

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    def missing(self) -> str | None:
        """Nothing is: it is not ours to install."""
        return None

    def _launch(self, directory: str, resources: ExitStack) -> Access:
        del directory, resources
        return self._given


def external_servers(environment: Mapping[str, str]) -> dict[str, ExternalServer]:
    """Find the servers that the environment names.

    Args:
        environment: Usually ``os.environ``. Endpoints are read from ``DCP_CLOUD_TEST_MINIO_ENDPOINT``,
            ``DCP_CLOUD_TEST_GCS_ENDPOINT`` and ``DCP_CLOUD_TEST_AZURE_ENDPOINT``; MinIO's keys from its own
            ``MINIO_ROOT_USER`` and ``MINIO_ROOT_PASSWORD``.

    Returns:
        Servers by name: ``minio``, ``fake-gcs`` and ``azurite``, those that are named.
    """
    found: dict[str, Access] = {}
    if url := environment.get(MINIO_ENDPOINT):
        found["minio"] = S3Access(
            endpoint_url=url,
            access_key=environment.get("MINIO_ROOT_USER", "testing"),
            secret_key=environment.get("MINIO_ROOT_PASSWORD", "testing123"),
            compatibility="minio",
        )
    if url := environment.get(GCS_ENDPOINT):
        found["fake-gcs"] = GCSAccess(endpoint_url=url)
    if url := environment.get(AZURE_ENDPOINT):
        found["azurite"] = AzureAccess(endpoint_url=url)
    return {name: ExternalServer(name=name, access=access) for name, access in found.items()}
