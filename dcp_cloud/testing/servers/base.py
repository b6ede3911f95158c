"""A server to test against: what they all offer, and how one is started and stopped."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

from dcp_cloud.errors import DcpCloudError, MissingExtraError
from dcp_cloud.testing.servers.access import Access, format_uri
from dcp_cloud.testing.servers.process import ServerEndedError

ServerT = TypeVar("ServerT", bound="ObjectServer")

_STARTS = 3


class ObjectServer(ABC):
    """An object server on 127.0.0.1, to be used as a context manager or by ``start`` and ``stop``.

    ::

        with MotoServer() as server:
            server.create_bucket("bucket")
            os.environ.update(server.environment)
            dcp.save(state_dict, storage_writer=CloudStorageWriter(server.uri("bucket", "step-1")))

    A new kind of server implements ``name``, ``missing`` and ``_launch``.
    """

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._access: Access | None = None
        self._client: Any = None

    @property
    @abstractmethod
    def name(self) -> str:
        """What the server is called in messages and in the lists of the tests."""

    @abstractmethod
    def missing(self) -> str | None:
        """Tell what is not installed.

        Returns:
            The line that installs it, or None if the server can be started.
        """

    @abstractmethod
    def _launch(self, directory: str, resources: ExitStack) -> Access:
        """Start the server and wait until it is ready.

        Args:
            directory: A directory of its own, removed after it has stopped.
            resources: Takes what has to be ended, in reverse order of starting.
        """

    def start(self: ServerT) -> ServerT:  # noqa: PYI019 - typing.Self came with Python 3.11
        """Start the server and wait until it is ready. A started server stays as it is.

        Returns:
            The server itself.

        Raises:
            MissingExtraError: It is not installed; the message names the line that installs it.
            DcpCloudError: It does not start; the message holds the end of its log.
        """
        if self._access is not None:
            return self
        if (install := self.missing()) is not None:
            raise MissingExtraError(f"{self.name} is not installed", hint=f"install it: {install}")
        for attempt in range(1, _STARTS + 1):
            with ExitStack() as resources:
                directory = resources.enter_context(tempfile.TemporaryDirectory(prefix="dcp-cloud-"))
                try:
                    self._access = self._launch(directory, resources)
                except ServerEndedError:
                    # Between finding a free port and binding it, another program can take it: try another one.
                    if attempt == _STARTS:
                        raise
                    continue
                self._resources = resources.pop_all()
                break
        return self

    def stop(self) -> None:
        """Stop the server, wait for its end and remove what it stored. Stopping twice does nothing."""
        if self._client is not None:
            self._client.close()
        self._client = self._access = None
        self._resources.close()

    def __enter__(self: ServerT) -> ServerT:  # noqa: PYI019
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def access(self) -> Access:
        """Address and credentials.

        Raises:
            DcpCloudError: The server is not running.
        """
        if self._access is None:
            raise DcpCloudError(f"{self.name} is not running", hint="use it in a with statement or call start()")
        return self._access

    @property
    def scheme(self) -> str:
        """URI scheme of the store that speaks to this server."""
        return self.access.scheme

    @property
    def endpoint_url(self) -> str:
        """Base URL of the server."""
        return self.access.endpoint_url

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables with which the provider's SDK, and so the store, finds credentials and server."""
        return self.access.environment

    def uri(self, bucket: str, prefix: str = "", **options: str) -> str:
        """Write the URI of a place on this server, to be opened under its ``environment``.

        Args:
            bucket: Bucket or container.
            prefix: Key prefix.
            **options: Further options of the URI.

        Returns:
            The URI.
        """
        return format_uri(self.access, bucket, prefix, **options)

    def client(self) -> Any:  # noqa: ANN401 - the SDKs are optional, so their types cannot stand here
        """Give the official SDK's client for this server, one and the same until the server stops."""
        if self._client is None:
            self._client = self.access.client()
        return self._client

    def create_bucket(self, name: str) -> None:
        """Create a bucket (Azure: a container).

        Args:
            name: 3 to 63 lower-case letters, digits and hyphens, which every provider takes.
        """
        self.access.create_bucket(self.client(), name)

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it.

        Args:
            name: Name of the bucket.
        """
        self.access.delete_bucket(self.client(), name)
