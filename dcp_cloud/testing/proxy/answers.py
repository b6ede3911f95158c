"""Error answers in the shape of the provider that a request was meant for."""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus

from dcp_cloud.testing.proxy.faults import NetworkFault
from dcp_cloud.testing.proxy.message import Message

_MESSAGE = "answered on purpose"


def error_answer(request: Message, fault: NetworkFault) -> Message:
    """Write the answer that a fault gives instead of the server.

    Args:
        request: The request.
        fault: A fault of the kind ``status``.

    Returns:
        The answer; without a body if the request was a ``HEAD``.
    """
    try:
        phrase = HTTPStatus(fault.status).phrase
    except ValueError:
        phrase = "Error"
    fields = [("Date", formatdate(usegmt=True)), ("x-amz-request-id", "0")]
    if fault.retry_after_s is not None:
        fields.append(("Retry-After", str(fault.retry_after_s)))
    if request.header("x-ms-version"):
        fields.append(("x-ms-error-code", fault.code))
    if request.path.startswith(("/storage/", "/upload/storage/", "/download/storage/", "/resumable/")):
        kind, body = "application/json", _google(fault)
    else:
        kind = "application/xml"
        body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>{_MESSAGE}</Message></Error>".encode()
    fields.append(("Content-Type", kind))
    return Message(
        start=f"HTTP/1.1 {fault.status} {phrase}",
        fields=tuple(fields),
        body=b"" if request.method == "HEAD" else body,
    )


def _google(fault: NetworkFault) -> bytes:
    error = {"code": fault.status, "message": _MESSAGE, "errors": [{"reason": fault.code, "message": _MESSAGE}]}
    return json.dumps({"error": error}).encode()
