"""The S3 client: boto3 for everything but the bodies, the wire for the bodies.

boto3 finds credentials and endpoints, makes and signs requests and understands answers. Just before it sends, it emits
``before-send.s3``, and whoever answers that event has sent the request. For objects and parts that is done here: the
method is called with an empty placeholder body and the true ``ContentLength``, and the signed request goes out over
:class:`~dcp_cloud.stores.wire.Wire` with the caller's buffers. Parts and ranges are many and alike: where it can be
shown to be the same, they are made from one request of the SDK (:mod:`~dcp_cloud.stores.s3_repeat`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.keys import total_bytes
from dcp_cloud.stores.s3_arguments import RequestArguments
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.stores.s3_errors import translate
from dcp_cloud.stores.s3_repeat import Patterns, Signed
from dcp_cloud.stores.s3_session import make_client
from dcp_cloud.stores.wire import Wire, WireResponse

# An error document is a few hundred bytes; more than this is not read from a server that sends no end.
_MAX_ANSWER_BYTES = 1024 * 1024
# The operations whose bodies travel here. The SDK may make others in between, to find a bucket's region for example.
_DATA_OPERATIONS = ("GetObject", "PutObject", "UploadPart")
# Answers that have nothing to do with how a request was made: missing, another version, out of range, too many.
_PLAIN_ERRORS = (404, 412, 416, 429)
_ERRORS: Any = create_parser("rest-xml")


@dataclass(slots=True)
class _Lane:
    """What one thread sends and receives beside the SDK's call."""

    body: Buffers
    key: str
    replay: bool
    response: WireResponse | None = None
    # Whether the request is only to be made, not sent; and what was made.
    is_draft: bool = False
    request: Signed | None = None


class _Lanes(threading.local):
    current: _Lane | None = None


class _Connected(NamedTuple):
    """What requests of one process go through."""

    pid: int
    client: Any
    wire: Wire
    arguments: RequestArguments
    patterns: Patterns


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


class _Nothing:
    """The body of an answer that nobody gave."""

    def stream(self) -> Iterator[bytes]:
        """Give no byte."""
        return iter(())


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

    @property
    def region(self) -> str | None:
        """The region for which requests are signed, unless the bucket turns out to be elsewhere."""
        name: str | None = self._connect().client.meta.region_name
        return name

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

    def send_part(self, body: Buffers, *, key: str, **arguments: object) -> Any:  # noqa: ANN401
        """Call ``upload_part`` with the given buffers as its body.

        Args:
            body: What to send.
            key: Object key.
            arguments: The method's other arguments.

        Returns:
            The SDK's answer, or as much of it as is needed: the ETag.
        """
        response = self._repeat("upload_part", key, body, {"ContentLength": total_bytes(body), **arguments})
        if response is not None:
            with response:
                response.read(_MAX_ANSWER_BYTES)
                return {"ETag": response.headers.get("ETag", "")}
        return self.send("upload_part", body, key=key, **arguments)  # type: ignore[arg-type]  # none is called replay

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

    @contextmanager
    def receive_range(self, *, key: str, **arguments: object) -> Iterator[tuple[str, WireResponse]]:
        """Call ``get_object`` for a range and hand out its body as it arrives.

        Args:
            key: Object key.
            arguments: The method's other arguments.

        Yields:
            The answer's ``Content-Range``, and the response to read the body from.
        """
        response = self._repeat("get_object", key, (), arguments)
        if response is not None:
            with response:
                yield response.headers.get("Content-Range", ""), response
            return
        with self.receive(key=key, **arguments) as (answer, response):
            yield answer.get("ContentRange", ""), response

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
                client, wire, credentials = make_client(self.config)
                for operation in _DATA_OPERATIONS:
                    client.meta.events.register(f"before-send.s3.{operation}", self._before_send)
                self._made = _Connected(os.getpid(), client, wire, arguments, Patterns(self._draft, credentials))
            return self._made

    def _draft(self, operation: str, key: str, arguments: Mapping[str, object]) -> Signed | None:
        """Have the SDK make a request that is not sent."""
        lane = _Lane((), key, replay=False, is_draft=True)
        body = {"Body": b""} if "ContentLength" in arguments else {}
        with self._lane(lane):
            self.call(operation, subject=key, Key=key, **body, **arguments)
        return lane.request

    def _repeat(self, operation: str, key: str, body: Buffers, arguments: Mapping[str, object]) -> WireResponse | None:
        """Send a request that was made without the SDK; None if the SDK has to make it, or has to see the answer."""
        made = self._connect()
        with self._translated(operation, key):
            request = made.patterns.make(operation, key, arguments)
        if request is None:
            return None
        response = made.wire.request(request.method, request.url, request.headers, body, key=key)
        if response.status < 300:
            return response
        with response:
            answer = {
                "status_code": response.status,
                "headers": dict(response.headers.items()),
                "body": response.read(_MAX_ANSWER_BYTES),
            }
        if response.status < 500 and response.status not in _PLAIN_ERRORS:
            made.patterns.give_up()
            return None
        with self._translated(operation, key):
            raise ClientError(_ERRORS.parse(answer, None), operation)

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
        if lane.is_draft:
            lane.request = Signed(request.method, request.url, headers)
            fields: Any = {}
            return AWSResponse(request.url, 200, fields, _Nothing())
        wire = self._connect().wire
        lane.response = wire.request(request.method, request.url, headers, lane.body, key=lane.key, replay=lane.replay)
        fields = dict(lane.response.headers.items())
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
