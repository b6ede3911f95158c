"""The S3 client: boto3 for everything but the bodies, the wire for the bodies.

boto3 finds credentials and endpoints, makes and signs requests and understands answers. Just before it sends, it emits
``before-send.s3``, and whoever answers that event has sent the request. For objects and parts that is done here: the
method is called with an empty placeholder body and the true ``ContentLength``, and the signed request goes out over
:class:`~dcp_cloud.stores.wire.Wire` with the caller's buffers.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import boto3.session
import botocore.session
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.loaders import create_loader

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.keys import total_bytes
from dcp_cloud.stores.s3_arguments import RequestArguments
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.stores.s3_dialect import DIALECTS
from dcp_cloud.stores.s3_errors import translate
from dcp_cloud.stores.wire import Wire, WireConfig, WireResponse

# An error document is a few hundred bytes; more than this is not read from a server that sends no end.
_MAX_ANSWER_BYTES = 1024 * 1024
# The operations whose bodies travel here. The SDK may make others in between, to find a bucket's region for example.
_DATA_OPERATIONS = ("GetObject", "PutObject", "UploadPart")


@dataclass(slots=True)
class _Lane:
    """What one thread sends and receives beside the SDK's call."""

    body: Buffers
    key: str
    replay: bool
    response: WireResponse | None = None


class _Lanes(threading.local):
    current: _Lane | None = None


class _Connected(NamedTuple):
    """What requests of one process go through."""

    pid: int
    client: Any
    wire: Wire
    arguments: RequestArguments


class _Answer:
    """A wire response in the shape that ``AWSResponse`` reads."""

    def __init__(self, response: WireResponse) -> None:
        self._response = response

    def stream(self) -> Iterator[bytes]:
        """Give the body of an error or of an answer without data."""
        with self._response:
            yield self._response.read(_MAX_ANSWER_BYTES)

    def close(self) -> None:
        """Leave the response open: the SDK closes what it drops, and the caller is still to read from it."""


class S3Client:
    """Calls S3 operations on one bucket. Thread-safe; pickles as its configuration; connects when first used.

    Args:
        bucket: Bucket name.
        config: How to reach it.
    """

    def __init__(self, bucket: str, config: S3Config) -> None:
        self.bucket = bucket
        self.config = config
        self._lock = threading.Lock()
        self._lanes = _Lanes()
        self._made: _Connected | None = None

    def __reduce__(self) -> tuple[type[S3Client], tuple[str, S3Config]]:
        return type(self), (self.bucket, self.config)

    def call(self, operation: str, *, subject: str, **arguments: object) -> Any:  # noqa: ANN401 - the SDK's dictionary
        """Call an operation without a body of its own.

        Args:
            operation: Method of the SDK's client.
            subject: Key or prefix, for error messages.
            arguments: The method's arguments, but the bucket.

        Returns:
            The SDK's answer.

        Raises:
            StoreError: The server refused, or could not be reached.
            ConfigError: The SDK cannot be configured.
        """
        with self._translated(operation, subject):
            return getattr(self._connect().client, operation)(**self._complete(operation, arguments))

    def send(self, operation: str, body: Buffers, *, key: str, replay: bool = True, **arguments: object) -> Any:  # noqa: ANN401
        """Call an operation whose body is the given buffers.

        Args:
            operation: Method of the SDK's client with ``Body`` and ``ContentLength``.
            body: What to send.
            key: Object key.
            replay: Whether the request may be sent again over another connection without being asked.
            arguments: The method's other arguments.

        Returns:
            The SDK's answer.
        """
        length = total_bytes(body)
        with self._lane(_Lane(body, key, replay)):
            return self.call(operation, subject=key, Key=key, Body=b"", ContentLength=length, **arguments)

    @contextmanager
    def receive(self, *, key: str, **arguments: object) -> Iterator[tuple[Any, WireResponse]]:
        """Call ``get_object`` and hand out its body as it arrives.

        Args:
            key: Object key.
            arguments: The method's other arguments.

        Yields:
            The SDK's answer, and the response to read the body from.
        """
        lane = _Lane((), key, replay=True)
        try:
            with self._lane(lane):
                answer = self.call("get_object", subject=key, Key=key, **arguments)
            assert lane.response is not None  # noqa: S101 - the call has gone through the lane
            yield answer, lane.response
        finally:
            if lane.response is not None:
                lane.response.close()

    def pages(self, operation: str, *, subject: str, **arguments: object) -> Iterator[Any]:
        """Call a listing operation until its end.

        Args:
            operation: Method of the SDK's client that has a paginator.
            subject: Prefix, for error messages.
            arguments: The method's arguments.

        Yields:
            Each page.
        """
        with self._translated(operation, subject):
            paginator = self._connect().client.get_paginator(operation)
            yield from paginator.paginate(**self._complete(operation, arguments))

    def close(self) -> None:
        """Close all resting connections; the next call connects anew."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.client.close()
            made.wire.close()

    def _complete(self, operation: str, arguments: Mapping[str, object]) -> dict[str, object]:
        bucket = self.config.access_point or self.bucket
        return {"Bucket": bucket, **self._connect().arguments.of(operation), **arguments}

    def _connect(self) -> _Connected:
        made = self._made
        if made is not None and made.pid == os.getpid():
            return made
        with self._lock:
            # Not after a fork: the sockets of the client's pool are the parent's.
            if self._made is None or self._made.pid != os.getpid():
                arguments = RequestArguments(self.config)
                client, wire = _make_client(self.config)
                for operation in _DATA_OPERATIONS:
                    client.meta.events.register(f"before-send.s3.{operation}", self._before_send)
                self._made = _Connected(os.getpid(), client, wire, arguments)
            return self._made

    def _before_send(self, request: Any, **_kwargs: object) -> Any:  # noqa: ANN401 - the SDK's types lie about bytes
        lane = self._lanes.current
        if lane is None:
            return None
        if lane.response is not None:
            # The SDK asks again: it followed a redirect to the bucket's region.
            lane.response.close()
        headers = [
            (name, value.decode("latin-1") if isinstance(value, bytes) else str(value))
            for name, value in request.headers.items()
            if name.lower() != "expect"  # the answer would come before the body is asked for
        ]
        wire = self._connect().wire
        lane.response = wire.request(request.method, request.url, headers, lane.body, key=lane.key, replay=lane.replay)
        fields: Any = dict(lane.response.headers.items())
        return AWSResponse(request.url, lane.response.status, fields, _Answer(lane.response))

    @contextmanager
    def _lane(self, lane: _Lane) -> Iterator[None]:
        self._lanes.current = lane
        try:
            yield
        finally:
            self._lanes.current = None

    @contextmanager
    def _translated(self, operation: str, subject: str) -> Iterator[None]:
        try:
            yield
        except DcpCloudError:
            raise
        except Exception as error:
            action = f"{operation} on s3://{self.bucket}"
            raise translate(error, action=action, key=subject or None) from error


def _add_content_md5(params: Any, context: Any, **_kwargs: object) -> None:  # noqa: ANN401 - the SDK's dictionaries
    """Add what S3 demanded of a batch delete before checksums were many; compatible servers still do."""
    if context.get("endpoint_properties", {}).get("backend") == "S3Express":
        return  # directory buckets know no MD5; the SDK sends a CRC-32 as well
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@lru_cache(maxsize=4)
def _shared_loader(data_path: str | None) -> Any:  # noqa: ANN401 - the SDK has no types
    """Let all sessions share the service descriptions: reading them anew costs 0.1 CPU seconds for each client."""
    return create_loader(data_path)


def _make_client(config: S3Config) -> tuple[Any, Wire]:
    ca_bundle = config.ca_bundle
    if config.session_factory is not None:
        session = config.session_factory()
        ca_bundle = ca_bundle or os.environ.get("AWS_CA_BUNDLE")
    else:
        core = botocore.session.Session(profile=config.profile)
        session = boto3.session.Session(botocore_session=core)
        core.register_component("data_loader", _shared_loader(core.get_config_variable("data_path")))
        ca_bundle = ca_bundle or core.get_config_variable("ca_bundle")
    s3: Any = {"payload_signing_enabled": False}
    if config.accelerate:
        s3["use_accelerate_endpoint"] = True
    if config.addressing_style != "auto":
        s3["addressing_style"] = config.addressing_style
    client = session.client(
        "s3",
        region_name=config.region or DIALECTS[config.compatibility].region,
        endpoint_url=config.endpoint_url,
        verify=(ca_bundle or True) if config.verify_tls else False,
        config=Config(
            signature_version=UNSIGNED if config.anonymous else None,
            # One attempt: retrying is the transfer layer's work. No SHA-256 over bodies: TLS protects them on the
            # way, and a CRC that goes with them is verified at the other end.
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3=s3,
            # None leaves the choice to the SDK's own configuration.
            use_dualstack_endpoint=config.dual_stack or None,
            use_fips_endpoint=config.fips or None,
            proxies={"http": config.proxy_url, "https": config.proxy_url} if config.proxy_url else None,
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.read_timeout_s,
            max_pool_connections=config.max_pool_connections,
            # The SDK must not compute checksums of placeholder bodies; the store sends its own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra="dcp-cloud",
        ),
    )
    client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    wire = Wire(
        WireConfig(
            connect_timeout_s=config.connect_timeout_s,
            read_timeout_s=config.read_timeout_s,
            verify_tls=config.verify_tls,
            ca_bundle=ca_bundle or get_cert_path(True),  # noqa: FBT003 - the SDK's signature
            max_idle=config.max_pool_connections,
            proxy_url=config.proxy_url,
        )
    )
    return client, wire
