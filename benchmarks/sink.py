"""An object server in memory that is faster than its clients, for measuring clients.

It speaks as much of S3 as a checkpoint needs, and the few requests of Google's and Azure's APIs that move parts. It
authenticates nobody and verifies nothing. Bodies are received straight into a file in memory, made and touched when the
server starts, and sent from there with ``sendfile``: one copy on the way in, none on the way out. A link can be shaped:
a delay before the first byte of each answer, and a rate for each connection.

    python -m benchmarks.sink --gib 4 --port 0

prints the port and runs until its standard input is closed. ``/_sink/stats``, ``/_sink/reset``, ``/_sink/clear`` and
``/_sink/shape?first_byte_s=0.03&bytes_per_s=90e6`` are for whoever measures.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import mmap
import os
import resource
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

MIB = 1024**2
PAGE_BYTES = 4096
# A paced transfer sleeps after each slice of this length.
PACED_BYTES = 256 * 1024
NOW = "2026-01-01T00:00:00.000Z"
NOW_HTTP = "Thu, 01 Jan 2026 00:00:00 GMT"


class Arena:
    """Room for bodies: a file in memory whose pages are all there from the beginning."""

    def __init__(self, nbytes: int) -> None:
        self.fd = os.memfd_create("sink")
        os.ftruncate(self.fd, nbytes)
        self._map = mmap.mmap(self.fd, nbytes)
        for start in range(0, nbytes, PAGE_BYTES):
            self._map[start] = 0
        self.view = memoryview(self._map)
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(0, nbytes)]  # (start, length), by start

    def take(self, nbytes: int) -> tuple[int, int]:
        length = max(1, -(-nbytes // PAGE_BYTES)) * PAGE_BYTES
        with self._lock:
            for i, (start, room) in enumerate(self._free):
                if room >= length:
                    self._free[i : i + 1] = [(start + length, room - length)] if room > length else []
                    return start, nbytes
        raise MemoryError("the sink is full: start it with more --gib")

    def give(self, segment: tuple[int, int]) -> None:
        start, nbytes = segment
        length = max(1, -(-nbytes // PAGE_BYTES)) * PAGE_BYTES
        with self._lock:
            i = bisect.bisect(self._free, (start, 0))
            if i < len(self._free) and self._free[i][0] == start + length:
                length += self._free.pop(i)[1]
            if i and sum(self._free[i - 1]) == start:
                before = self._free.pop(i - 1)
                start, length = before[0], before[1] + length
                i -= 1
            self._free.insert(i, (start, length))


@dataclass(slots=True)
class Blob:
    etag: str
    segments: list[tuple[int, int]]
    starts: list[int] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.starts = [0, *itertools.accumulate(length for _, length in self.segments)]
        self.nbytes = self.starts.pop()

    def pieces(self, start: int, stop: int):
        i = bisect.bisect_right(self.starts, start) - 1
        while start < stop:
            offset, length = self.segments[i]
            inner = start - self.starts[i]
            count = min(length - inner, stop - start)
            yield offset + inner, count
            start += count
            i += 1


class Sink:
    """All that is stored, and the counters."""

    def __init__(self, nbytes: int) -> None:
        self.arena = Arena(nbytes)
        self.lock = threading.Lock()
        self.blobs: dict[str, Blob] = {}
        self.uploads: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {}
        self.ids = itertools.count(1)
        self.requests: Counter[str] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.connections = 0
        self.first_byte_s = 0.0
        self.bytes_per_s = 0.0

    def count(self, verb: str, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        with self.lock:
            self.requests[verb] += 1
            self.bytes_in += bytes_in
            self.bytes_out += bytes_out

    def store(self, key: str, segments: list[tuple[int, int]]) -> Blob:
        with self.lock:
            blob = Blob(f"{next(self.ids):032x}", segments)
            old, self.blobs[key] = self.blobs.get(key), blob
        self.free(old.segments if old else [])
        return blob

    def remove(self, key: str) -> None:
        with self.lock:
            old = self.blobs.pop(key, None)
        self.free(old.segments if old else [])

    def free(self, segments) -> None:
        for segment in segments:
            self.arena.give(segment)

    def clear(self) -> None:
        for key in list(self.blobs):
            self.remove(key)
        for name in list(self.uploads):
            self.free(self.uploads.pop(name)[1].values())

    def stats(self) -> dict[str, object]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "requests": dict(self.requests),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "connections": self.connections,
        }


class HangupError(Exception):
    """The client went away."""


class Session(threading.Thread):
    """One connection."""

    def __init__(self, sink: Sink, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sink = sink
        self.sock = sock
        self.rest = b""

    def run(self) -> None:
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                self._serve()
        except (HangupError, OSError):
            pass
        except Exception:  # a request that this server does not know: say so and hang up
            traceback.print_exc()
            self._error(500, "InternalError")
        finally:
            self.sock.close()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise HangupError
        self.rest += data

    def _head(self) -> tuple[str, str, dict[str, str]]:
        while (end := self.rest.find(b"\r\n\r\n")) < 0:
            self._more()
        lines, self.rest = self.rest[:end].decode("latin-1").split("\r\n"), self.rest[end + 4 :]
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return method, target, headers

    def _line(self) -> bytes:
        while (end := self.rest.find(b"\r\n")) < 0:
            self._more()
        line, self.rest = self.rest[:end], self.rest[end + 2 :]
        return line

    def _fill(self, view: memoryview) -> None:
        count = min(len(self.rest), len(view))
        if count:
            view[:count] = self.rest[:count]
            self.rest = self.rest[count:]
        began = time.monotonic()
        rate = self.sink.bytes_per_s
        start = count
        while count < len(view):
            stop = min(len(view), count + PACED_BYTES) if rate else len(view)
            got = self.sock.recv_into(view[count:stop], stop - count, 0 if rate else socket.MSG_WAITALL)
            if not got:
                raise HangupError
            count += got
            if rate:
                pause = began + (count - start) / rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)

    def _body(self, headers: dict[str, str]) -> tuple[int, int]:
        """Receive the body into the arena."""
        if headers.get("expect", "").lower() == "100-continue":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        aws_chunked = "aws-chunked" in headers.get("content-encoding", "")
        if chunked and not aws_chunked:
            data = bytearray()
            while length := int(self._line().split(b";")[0], 16):
                chunk = bytearray(length)
                self._fill(memoryview(chunk))
                data += chunk
                self._line()
            while self._line():
                pass
            segment = self.sink.arena.take(len(data))
            self.sink.arena.view[segment[0] : sum(segment)] = data
            return segment
        length = int(headers.get("x-amz-decoded-content-length") or headers.get("content-length") or 0)
        segment = self.sink.arena.take(length)
        view = self.sink.arena.view[segment[0] : sum(segment)]
        if not aws_chunked:
            self._fill(view)
            return segment
        if chunked:
            raise NotImplementedError("chunks within chunks")
        filled = 0
        while count := int(self._line().split(b";")[0], 16):
            self._fill(view[filled : filled + count])
            filled += count
            self._line()
        while self._line():  # trailers, ended by an empty line
            pass
        return segment

    def _text(self, headers: dict[str, str]) -> bytes:
        segment = self._body(headers)
        text = bytes(self.sink.arena.view[segment[0] : sum(segment)])
        self.sink.arena.give(segment)
        return text

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, status: int, body: str | bytes = b"", **fields: object) -> None:
        data = body.encode() if isinstance(body, str) else body
        fields.setdefault("Content_Length", len(data))
        lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
        if self.sink.first_byte_s:
            time.sleep(self.sink.first_byte_s)
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + data)

    def _xml(self, name: str, content: str, status: int = 200) -> None:
        self._answer(
            status, f'<?xml version="1.0" encoding="UTF-8"?><{name}>{content}</{name}>', Content_Type="application/xml"
        )

    def _error(self, status: int, code: str) -> None:
        self._xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status)

    def _send(self, blob: Blob, start: int, stop: int) -> None:
        began, sent, rate = time.monotonic(), 0, self.sink.bytes_per_s
        for first, nbytes in blob.pieces(start, stop):
            offset, length = first, nbytes
            while length:
                count = os.sendfile(
                    self.sock.fileno(), self.sink.arena.fd, offset, min(length, PACED_BYTES) if rate else length
                )
                if not count:
                    raise HangupError
                offset, length, sent = offset + count, length - count, sent + count
                if rate:
                    pause = began + sent / rate - time.monotonic()
                    if pause > 0:
                        time.sleep(pause)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        method, target, headers = self._head()
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = unquote(parts.path).lstrip("/")
        if path.startswith("_sink/"):
            self._control(path, query)
            return
        # Google's JSON API: /download/storage/v1/b/BUCKET/o/KEY
        if path.startswith("download/storage/v1/b/"):
            bucket, _, key = path.removeprefix("download/storage/v1/b/").partition("/o/")
            path = f"{bucket}/{key}"
        key = path.partition("/")[2]
        handler = getattr(self, f"_{method.lower()}_{'object' if key else 'bucket'}", None)
        if handler is None:
            self._error(405, "MethodNotAllowed")
            return
        handler(path, query, headers)

    def _control(self, path: str, query: dict[str, str]) -> None:
        sink = self.sink
        action = path.removeprefix("_sink/")
        if action == "reset":
            sink.requests.clear()
            sink.bytes_in = sink.bytes_out = sink.connections = 0
        elif action == "clear":
            sink.clear()
        elif action == "shape":
            sink.first_byte_s = float(query.get("first_byte_s", 0))
            sink.bytes_per_s = float(query.get("bytes_per_s", 0))
        data = json.dumps(sink.stats()).encode()
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def _put_bucket(self, path, query, headers) -> None:
        self._text(headers)
        self._answer(200)

    def _head_bucket(self, path, query, headers) -> None:
        self.sink.count("head")
        self._answer(200, x_amz_bucket_region="us-east-1")

    def _get_bucket(self, path, query, headers) -> None:
        self.sink.count("list")
        bucket = path.strip("/")
        if "location" in query:
            self._xml("LocationConstraint", "")
        elif "uploads" in query:
            entries = "".join(
                f"<Upload><Key>{escape(key.partition('/')[2])}</Key><UploadId>{name}</UploadId></Upload>"
                for name, (key, _) in list(self.sink.uploads.items())
            )
            self._xml("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{entries}")
        else:
            self._list(bucket, query)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        contents, prefixes = [], {}
        for full, blob in sorted(self.sink.blobs.items()):
            name, _, key = full.partition("/")
            if name != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes[prefix + rest.split(delimiter)[0] + delimiter] = None
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{NOW}</LastModified><ETag>&quot;{blob.etag}&quot;</ETag>"
                f"<Size>{blob.nbytes}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in prefixes)
        self._xml(
            "ListBucketResult",
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(contents) + len(prefixes)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(contents)}{common}",
        )

    def _post_bucket(self, path, query, headers) -> None:
        text = self._text(headers)
        self.sink.count("delete")
        for element in ET.fromstring(text).iter():
            if element.tag.rpartition("}")[2] == "Key":
                self.sink.remove(f"{path.strip('/')}/{element.text}")
        self._xml("DeleteResult", "")

    def _post_object(self, path, query, headers) -> None:
        text = self._text(headers)
        if "uploads" in query:
            self.sink.count("create")
            name = f"upload{next(self.sink.ids)}"
            self.sink.uploads[name] = (path, {})
            bucket, _, key = path.partition("/")
            self._xml(
                "InitiateMultipartUploadResult",
                f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{name}</UploadId>",
            )
            return
        self.sink.count("complete")
        parts = self.sink.uploads.pop(query["uploadId"])[1]
        numbers = [e.text for e in ET.fromstring(text).iter() if e.tag.rpartition("}")[2] == "PartNumber"]
        blob = self.sink.store(path, [parts[number] for number in numbers])
        bucket, _, key = path.partition("/")
        self._xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><ETag>&quot;{blob.etag}&quot;</ETag>",
        )

    def _put_object(self, path, query, headers) -> None:
        comp = query.get("comp")
        if comp == "blocklist":
            text = self._text(headers)
            self.sink.count("complete")
            parts = self.sink.uploads.pop(path)[1]
            blocks = [e.text for e in ET.fromstring(text).iter() if e.tag in ("Latest", "Uncommitted", "Committed")]
            blob = self.sink.store(path, [parts.pop(block) for block in blocks])
            self.sink.free(parts.values())
            self._answer(201, ETag=f'"0x{blob.etag}"', Last_Modified=NOW_HTTP)
            return
        if "x-amz-copy-source" in headers:
            self._text(headers)
            self._copy(path, unquote(headers["x-amz-copy-source"]).lstrip("/"))
            return
        condition = headers.get("if-none-match"), headers.get("if-match")
        segment = self._body(headers)
        if comp == "block" or "partNumber" in query:
            self.sink.count("put_part", bytes_in=segment[1])
            name = path if comp else query["uploadId"]
            parts = self.sink.uploads.setdefault(name, (path, {}))[1]
            part = query["blockid"] if comp else query["partNumber"]
            if part in parts:
                self.sink.free([parts[part]])
            parts[part] = segment
            self._answer(201 if comp else 200, ETag=f'"{next(self.sink.ids):032x}"', Last_Modified=NOW_HTTP)
            return
        self.sink.count("put", bytes_in=segment[1])
        with self.sink.lock:
            old = self.sink.blobs.get(path)
        if (condition[0] == "*" and old) or (condition[1] and (not old or condition[1].strip('"') != old.etag)):
            self.sink.free([segment])
            self._error(412, "PreconditionFailed")
            return
        blob = self.sink.store(path, [segment])
        self._answer(201 if "x-ms-version" in headers else 200, ETag=f'"{blob.etag}"', Last_Modified=NOW_HTTP)

    def _copy(self, path: str, source: str) -> None:
        self.sink.count("copy")
        blob = self.sink.blobs.get(source)
        if blob is None:
            self._error(404, "NoSuchKey")
            return
        view = self.sink.arena.view
        segment = self.sink.arena.take(blob.nbytes)
        data = b"".join(bytes(view[start : start + length]) for start, length in blob.pieces(0, blob.nbytes))
        view[segment[0] : sum(segment)] = data
        copied = self.sink.store(path, [segment])
        self._xml("CopyObjectResult", f"<LastModified>{NOW}</LastModified><ETag>&quot;{copied.etag}&quot;</ETag>")

    def _head_object(self, path, query, headers) -> None:
        self.sink.count("head")
        blob = self.sink.blobs.get(path)
        if blob is None:
            self._answer(404)
            return
        self._answer(200, **self._describe(blob), Content_Length=blob.nbytes)

    def _get_object(self, path, query, headers) -> None:
        blob = self.sink.blobs.get(path)
        if "comp" in query:  # Azure's block list: nothing unfinished
            self.sink.count("list")
            self._xml("BlockList", "<UncommittedBlocks />")
            return
        if blob is None:
            self.sink.count("get")
            self._error(404, "NoSuchKey")
            return
        start, stop, status = 0, blob.nbytes, 200
        wanted = headers.get("range") or headers.get("x-ms-range")
        fields = self._describe(blob)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if first:
                start, stop = int(first), min(blob.nbytes, int(last) + 1 if last else blob.nbytes)
            else:
                start = max(0, blob.nbytes - int(last))
            if start >= blob.nbytes:
                self.sink.count("get")
                self._error(416, "InvalidRange")
                return
            status = 206
            fields["Content_Range"] = f"bytes {start}-{stop - 1}/{blob.nbytes}"
        self.sink.count("get", bytes_out=stop - start)
        self._answer(status, **fields, Content_Length=stop - start)
        self._send(blob, start, stop)

    def _delete_object(self, path, query, headers) -> None:
        if "uploadId" in query:
            self.sink.count("abort")
            self.sink.free(self.sink.uploads.pop(query["uploadId"], ("", {}))[1].values())
        else:
            self.sink.count("delete")
            self.sink.remove(path)
        self._answer(204)

    def _describe(self, blob: Blob) -> dict[str, object]:
        return {
            "ETag": f'"{blob.etag}"',
            "Last_Modified": NOW_HTTP,
            "Accept_Ranges": "bytes",
            "Content_Type": "application/octet-stream",
            "x_ms_blob_type": "BlockBlob",
            "x_goog_generation": "1",
            "x_goog_stored_content_length": blob.nbytes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="room for bodies")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    sink = Sink(int(arguments.gib * 1024) * MIB)
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
