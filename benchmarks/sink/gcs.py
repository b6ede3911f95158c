"""As much of Google's JSON API as checkpoints need: https://docs.cloud.google.com/storage/docs/json_api."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from benchmarks.sink.memory import Blob
from benchmarks.sink.wire import NOW, NOW_HTTP, Wire

Fields = dict[str, str]

_OBJECT = re.compile(r"^(?:upload/|download/)?storage/v1/b/(?P<bucket>[^/]+)(?:/o(?:/(?P<name>.+))?|/(?P<other>\w+))?$")
_COPY = re.compile(r"^storage/v1/b/([^/]+)/o/([^/]+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)$")
_MOVE = re.compile(r"^storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)$")
_CALL = re.compile(rb"Content-ID: <(?P<id>[^>]+)>\r?\n\r?\nDELETE (?:https?://[^/]+)?/(?P<path>[^ ?]+)")
_CONTENT_RANGE = re.compile(r"^bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$")
# Within which the description of an object ends, in an upload that brings it along.
_HEAD_BYTES = 64 * 1024


class GCS:
    """Answers requests to ``/storage/v1/…`` and the like; an object is stored as ``bucket/name``."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sink = wire.sink

    def serve(self, method: str, path: str, query: Fields, headers: Fields) -> None:
        """Answer a request; the path is still percent-encoded, since names of objects are one segment of it."""
        if path.startswith("batch/"):
            self._batch(self._wire.text(headers))
        elif found := _COPY.match(path):
            self._wire.text(headers)
            bucket, name, to_bucket, to_name = map(unquote, found.groups())
            self._copy(f"{bucket}/{name}", f"{to_bucket}/{to_name}")
        elif found := _MOVE.match(path):
            self._wire.text(headers)
            bucket, name, to_name = map(unquote, found.groups())
            self._copy(f"{bucket}/{name}", f"{bucket}/{to_name}", is_move=True)
        elif path.startswith("upload/"):
            self._upload(unquote(path.split("/b/")[1].split("/", maxsplit=1)[0]), query, headers)
        elif found := _OBJECT.match(path):
            self._object(method, found, path, query, headers)
        else:
            self._error(400, "unknown request")

    def _object(self, method: str, found: re.Match[str], path: str, query: Fields, headers: Fields) -> None:
        bucket, name = unquote(found["bucket"]), found["name"]
        if name is None:
            self._sink.count("list")
            if path.endswith("/o"):
                self._list(bucket, query)
            else:
                self._json({"kind": "storage#bucket", "name": bucket, "location": "US", "locationType": "region"})
            return
        key = f"{bucket}/{unquote(name)}"
        blob = self._sink.blobs.get(key)
        is_download = path.startswith("download/") or query.get("alt") == "media"
        if method == "DELETE":
            self._sink.count("delete")
            self._wire.answer(204 if self._sink.remove(key) else 404)
        elif blob is None:
            self._sink.count("get" if is_download else "head")
            self._error(404, "Not Found")
        elif is_download:
            fields = {
                "ETag": f'"{blob.etag}"',
                "Last_Modified": NOW_HTTP,
                "Content_Type": "application/octet-stream",
                "x_goog_generation": blob.number,
                "x_goog_stored_content_length": blob.nbytes,
            }
            if not self._wire.object(blob, headers, **fields):
                self._error(416, "no such range")
        else:
            self._sink.count("head")
            self._json(_resource(key, blob))

    def _list(self, bucket: str, query: Fields) -> None:
        found, prefixes = self._sink.below(f"{bucket}/{query.get('prefix', '')}", query.get("delimiter", ""))
        self._json(
            {
                "kind": "storage#objects",
                "items": [_resource(key, blob) for key, blob in found],
                "prefixes": [one.partition("/")[2] for one in prefixes],
            }
        )

    def _upload(self, bucket: str, query: Fields, headers: Fields) -> None:
        if "upload_id" in query:
            self._chunk(query["upload_id"], headers)
        elif query.get("uploadType") == "resumable":
            described = json.loads(self._wire.text(headers) or b"{}")
            self._sink.count("create")
            upload_id = f"upload{next(self._sink.ids)}"
            self._sink.uploads[upload_id] = (f"{bucket}/{query.get('name') or described['name']}", {})
            location = (
                f"http://{headers['host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"
            )
            self._wire.answer(200, Location=location)
        else:
            self._whole(bucket, query, headers)

    def _whole(self, bucket: str, query: Fields, headers: Fields) -> None:
        """Store what came in one request: its description, an empty line before it and before the data."""
        body = self._wire.body(headers)
        view = self._sink.arena.view(body)
        boundary = re.search(r"boundary=['\"]?([^'\";]+)", headers["content-type"])[1].encode()
        head = bytes(view[:_HEAD_BYTES])
        parts = re.match(rb"\s*--" + re.escape(boundary) + rb".*?\n\r?\n(.*?)\r?\n--.*?\n\r?\n", head, re.DOTALL)
        described = json.loads(parts[1])
        tail = bytes(view[-len(boundary) - 16 :])
        end = body.nbytes - len(tail) + re.search(rb"\r?\n--" + re.escape(boundary), tail).start()
        segment = body.part(parts.end(), end - parts.end())
        self._sink.count("put", bytes_in=segment.nbytes)
        key = f"{bucket}/{described['name']}"
        old, wanted = self._sink.blobs.get(key), query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (old.number if old else 0):
            self._sink.arena.give([segment])
            self._error(412, "conditionNotMet")
            return
        resource = _resource(key, self._sink.store(key, [segment]))
        self._json({**resource, **({"crc32c": described["crc32c"]} if "crc32c" in described else {})})

    def _chunk(self, upload_id: str, headers: Fields) -> None:
        """Append to a resumable upload; the chunk that says how long the object is ends it."""
        segment = self._wire.body(headers)
        self._sink.count("put_part", bytes_in=segment.nbytes)
        key, chunks = self._sink.uploads[upload_id]
        if segment.nbytes:
            chunks[str(len(chunks))] = segment
        received = sum(chunk.nbytes for chunk in chunks.values())
        total = _CONTENT_RANGE.match(headers.get("content-range", f"bytes */{received}"))[3]
        if total == "*" or int(total) > received:
            self._wire.answer(308, Range=f"bytes=0-{received - 1}")
            return
        del self._sink.uploads[upload_id]
        self._json(_resource(key, self._sink.store(key, list(chunks.values()))))

    def _copy(self, source: str, key: str, *, is_move: bool = False) -> None:
        self._sink.count("copy")
        blob = self._sink.blobs.get(source)
        if blob is None:
            self._error(404, "Not Found")
            return
        resource = _resource(key, self._sink.copy(blob, key))
        if is_move:
            self._sink.remove(source)
        self._json(resource if is_move else {"kind": "storage#rewriteResponse", "done": True, "resource": resource})

    def _batch(self, text: bytes) -> None:
        self._sink.count("delete")
        answers = []
        for call in _CALL.finditer(text):
            found = _OBJECT.match(call["path"].decode())
            self._sink.remove(f"{unquote(found['bucket'])}/{unquote(found['name'])}")
            answers.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: <response-{call['id'].decode()}>\r\n\r\n"
                "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        self._wire.answer(200, "".join(answers) + "--b--\r\n", Content_Type="multipart/mixed; boundary=b")

    def _json(self, document: dict[str, object], status: int = 200) -> None:
        self._wire.answer(status, json.dumps(document), Content_Type="application/json")

    def _error(self, status: int, message: str) -> None:
        self._json({"error": {"code": status, "message": message, "errors": []}}, status)


def _resource(key: str, blob: Blob) -> dict[str, object]:
    bucket, _, name = key.partition("/")
    return {
        "kind": "storage#object",
        "id": f"{key}/{blob.number}",
        "bucket": bucket,
        "name": name,
        "size": str(blob.nbytes),
        "generation": str(blob.number),
        "metageneration": "1",
        "etag": blob.etag,
        "updated": NOW,
        "timeCreated": NOW,
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
    }
