"""Run the server: see the package."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import traceback
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.sink.azure import Azure
from benchmarks.sink.gcs import GCS
from benchmarks.sink.memory import Sink
from benchmarks.sink.s3 import S3
from benchmarks.sink.wire import HangupError, Wire


class Session(threading.Thread):
    """Serves one connection until it is closed."""

    def __init__(self, sink: Sink, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self._sink = sink
        self._sock = sock
        self._wire = Wire(sink, sock)
        self._s3, self._gcs, self._azure = S3(self._wire), GCS(self._wire), Azure(self._wire)

    def run(self) -> None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                self._serve()
        except (HangupError, OSError):
            pass
        except Exception:  # a request that this server does not know: say so and hang up
            traceback.print_exc()
            self._s3.error(500, "InternalError")
        finally:
            self._sock.close()

    def _serve(self) -> None:
        method, target, headers = self._wire.head()
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        raw_path = parts.path.lstrip("/")
        if raw_path.startswith("_sink/"):
            self._control(raw_path.removeprefix("_sink/"), query)
        elif raw_path.startswith(("storage/v1/", "upload/storage/", "download/storage/", "batch/storage")):
            self._gcs.serve(method, raw_path, query, headers)
        elif "x-ms-version" in headers:
            self._azure.serve(method, unquote(raw_path), query, headers)
        else:
            self._s3.serve(method, unquote(raw_path), query, headers)

    def _control(self, action: str, query: dict[str, str]) -> None:
        sink = self._sink
        if action == "reset":
            sink.requests.clear()
            sink.bytes_in = sink.bytes_out = sink.connections = 0
        elif action == "clear":
            sink.clear()
        elif action == "shape":
            sink.first_byte_s = float(query.get("first_byte_s", 0))
            sink.bytes_per_s = float(query.get("bytes_per_s", 0))
        self._wire.control(json.dumps(sink.stats()).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="An object server in memory, for measuring clients.")
    parser.add_argument("--gib", type=float, default=4.0, help="room for bodies")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    sink = Sink(int(arguments.gib * 1024) * 1024**2)
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=512)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        sock, _ = listener.accept()
        sink.connections += 1
        Session(sink, sock).start()


if __name__ == "__main__":
    main()
