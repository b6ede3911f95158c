"""The SDK's transport: requests that the SDK has made and signed go out over the wire.

azure-core lets a client bring its own ``HttpTransport``, and hands keywords that no policy claims on to it. So a store
calls the SDK's own methods with an empty placeholder body and ``freight=``: what really travels is in the freight. On
the way back the freight takes the body from the socket, and the SDK sees an answer whose body is empty.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from azure.core.pipeline.transport import HttpResponse, HttpTransport
from azure.core.utils import case_insensitive_dict

from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.wire import Wire, WireResponse

# An error document is a few hundred bytes; more than this is not read from a server that sends no end.
_MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Freight:
    """What travels beside the SDK's call.

    Args:
        key: Object key, for error messages.
        body: The request's body in place of the SDK's.
        receive: Takes the body of a successful answer.
        replay: Whether the request may be sent again over another connection without being asked.
    """

    key: str | None = None
    body: Buffers | None = None
    receive: Callable[[WireResponse], None] | None = None
    replay: bool = True


def ship(
    key: str | None,
    *,
    body: Buffers | None = None,
    receive: Callable[[WireResponse], None] | None = None,
    replay: bool = True,
) -> dict[str, Any]:
    """Make the keywords that go with every call of the SDK.

    Args:
        key: As in :class:`Freight`.
        body: As in :class:`Freight`.
        receive: As in :class:`Freight`.
        replay: As in :class:`Freight`.

    Returns:
        The keywords.
    """
    return {
        "freight": Freight(key=key, body=body, receive=receive, replay=replay),
        # The SDK's own choice, uuid1, can leave an open file behind in each thread (libuuid's clock.txt), for ever.
        "client_request_id": str(uuid.uuid4()),
    }


class WireTransport(HttpTransport[Any, Any]):
    """Sends over the wire. Thread-safe; closing it closes the resting connections.

    Args:
        wire: Where to send.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def open(self) -> None:
        """Do nothing: connections are opened when they are needed."""

    def close(self) -> None:
        """Close the resting connections."""
        self._wire.close()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(self, request: Any, *, freight: Freight = Freight(), **_options: object) -> WireAnswer:  # noqa: ANN401
        """Send a request of the pipeline.

        Args:
            request: The SDK's request; its classes for that are several.
            freight: What travels beside it.

        Returns:
            The answer in the shape that the SDK reads.

        Raises:
            TransientError: Connecting, sending or receiving failed.
            InvalidRequestError: The connection is refused for good.
        """
        body = _placeholder(request.data) if freight.body is None else freight.body
        with self._wire.request(
            request.method, request.url, request.headers.items(), body, key=freight.key, replay=freight.replay
        ) as response:
            content = b""
            if response.status >= 300:
                content = response.read(_MAX_ERROR_BYTES)
            elif freight.receive is not None:
                freight.receive(response)
            else:
                content = response.read()
            return WireAnswer(request, response, content)


class WireAnswer(HttpResponse):
    """An answer whose body has been received.

    Args:
        request: The request.
        response: The wire's response.
        content: The body, or nothing if the freight took it.
    """

    def __init__(self, request: Any, response: WireResponse, content: bytes) -> None:  # noqa: ANN401
        super().__init__(request, None)
        self.status_code = response.status
        self.reason = response.reason
        self.headers = case_insensitive_dict(response.headers.items())
        self.content_type = self.headers.get("content-type")
        self._content = content

    def body(self) -> bytes:
        """Give the body."""
        return self._content

    def read(self) -> bytes:
        """Give the body, as the SDK's newer classes do."""
        return self._content

    def stream_download(self, pipeline: Any, **_options: object) -> Iterator[bytes]:  # noqa: ANN401, ARG002
        """Give the body as the downloads of the SDK read it."""
        return _Stream(self)


class _Stream(Iterator[bytes]):
    """A body in one chunk. The SDK hangs its own attributes on it, and reads these."""

    def __init__(self, response: WireAnswer) -> None:
        self.response = response
        self.request = response.request
        self.content_length = int(response.headers.get("content-length", 0))
        self._chunks = iter([response.body()] if response.body() else [])

    def __next__(self) -> bytes:
        return next(self._chunks)


def _placeholder(data: Any) -> Buffers:  # noqa: ANN401 - the SDK sends bytes, text or nothing
    content = data.encode() if isinstance(data, str) else data
    return [memoryview(content)] if content else []
