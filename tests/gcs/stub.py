"""A server on 127.0.0.1 that records requests and gives prepared answers, in the shapes of Google's documentation.

It shows what goes over the connection where no emulator has the feature: checksums of parts, tokens, encryption keys.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to say to it."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(document: object, status: int = 200, **headers: str) -> Answer:
    """An answer of the JSON API."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json; charset=UTF-8", **fields})


def json_error(status: int, reason: str, **headers: str) -> Answer:
    """An error of the JSON API, as https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes has it."""
    details = [{"domain": "global", "reason": reason, "message": "Some message"}]
    return json_answer({"error": {"errors": details, "code": status, "message": "Some message"}}, status, **headers)


def xml_error(status: int, code: str) -> Answer:
    """An error of the XML API."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>Some message</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml; charset=UTF-8"})


class Stub:
    """The server. ``answer`` may be a function of the request, or a list that is used up."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer] = lambda _request: Answer()
        self.url = ""

    def script(self, *answers: Answer) -> None:
        """Give these answers, one after the other."""
        rest: Iterator[Answer] = iter(answers)
        self.answer = lambda _request: next(rest)

    @property
    def last(self) -> Request:
        return self.requests[-1]


@contextmanager
def running_stub() -> Iterator[Stub]:
    """Run a stub for the length of a with statement."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            request = Request(
                self.command,
                parts.path,
                {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()},
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(int(self.headers.get("Content-Length", 0))),
            )
            stub.requests.append(request)
            answer = stub.answer(request)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name in answer.headers):
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
