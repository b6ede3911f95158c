"""As much of Azure's Blob API as checkpoints need: https://learn.microsoft.com/rest/api/storageservices/."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from benchmarks.sink.memory import Blob
from benchmarks.sink.wire import NOW_HTTP, Wire

Fields = dict[str, str]

_CALL = re.compile(rb"DELETE (?:https?://[^/]+)?/(?P<path>[^ ?]+)")


class Azure:
    """Answers requests to ``/account/container/blob``; an object is stored under just that key."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sink = wire.sink

    def serve(self, method: str, path: str, query: Fields, headers: Fields) -> None:
        if path.count("/") >= 2 and path.split("/", 2)[2]:
            handler = getattr(self, f"_{method.lower()}_blob")
            handler(path, query, headers)
        elif query.get("comp") == "batch":
            self._batch(self._wire.text(headers))
        elif query.get("comp") == "list":
            self._sink.count("list")
            self._list(path.strip("/"), query)
        else:
            self._wire.text(headers)
            self._sink.count("head")
            self._wire.answer(201 if method == "PUT" else 200, ETag='"0x1"', Last_Modified=NOW_HTTP)

    def _error(self, status: int, code: str) -> None:
        self._wire.xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status, x_ms_error_code=code)

    def _list(self, path: str, query: Fields) -> None:
        account, _, container = path.partition("/")
        if not container:
            names = sorted({key.split("/")[1] for key in self._sink.blobs})
            listed = "".join(f"<Container><Name>{escape(name)}</Name>{_properties(None)}</Container>" for name in names)
            self._wire.xml("EnumerationResults", f"<Containers>{listed}</Containers><NextMarker />")
            return
        start = f"{account}/{container}/"
        found, prefixes = self._sink.below(start + query.get("prefix", ""), query.get("delimiter", ""))
        blobs = "".join(
            f"<Blob><Name>{escape(key.removeprefix(start))}</Name>{_properties(blob)}</Blob>" for key, blob in found
        )
        folded = "".join(f"<BlobPrefix><Name>{escape(one.removeprefix(start))}</Name></BlobPrefix>" for one in prefixes)
        self._wire.xml("EnumerationResults", f"<Blobs>{blobs}{folded}</Blobs><NextMarker />")

    def _put_blob(self, path: str, query: Fields, headers: Fields) -> None:
        comp = query.get("comp")
        if comp == "blocklist":
            self._commit(path, headers)
        elif comp == "block":
            segment = self._wire.body(headers)
            self._sink.count("put_part", bytes_in=segment.nbytes)
            blocks = self._sink.uploads.setdefault(path, (path, {}))[1]
            old, blocks[query["blockid"]] = blocks.get(query["blockid"]), segment
            self._sink.arena.give([old] if old else [])
            self._wire.answer(201, Last_Modified=NOW_HTTP)
        elif comp is not None:
            self._wire.text(headers)
            self._wire.answer(200, **_written(self._sink.blobs[path]))
        elif "x-ms-copy-source" in headers:
            self._wire.text(headers)
            self._copy(path, unquote(urlsplit(headers["x-ms-copy-source"]).path).lstrip("/"))
        else:
            segment = self._wire.body(headers)
            self._sink.count("put", bytes_in=segment.nbytes)
            if self._is_refused(path, headers):
                self._sink.arena.give([segment])
                return
            self._wire.answer(201, **_written(self._sink.store(path, [segment])))

    def _commit(self, path: str, headers: Fields) -> None:
        text = self._wire.text(headers)
        self._sink.count("complete")
        if self._is_refused(path, headers):
            return
        blocks = self._sink.uploads.pop(path, ("", {}))[1]
        wanted = [one.text for one in ET.fromstring(text) if one.tag in ("Latest", "Uncommitted", "Committed")]
        blob = self._sink.store(path, [blocks.pop(str(block)) for block in wanted])
        self._sink.arena.give(blocks.values())
        self._wire.answer(201, **_written(blob))

    def _is_refused(self, path: str, headers: Fields) -> bool:
        old, match = self._sink.blobs.get(path), headers.get("if-match", "").strip('"').removeprefix("0x")
        if headers.get("if-none-match") == "*" and old:
            self._error(409, "BlobAlreadyExists")
            return True
        if match and (not old or match != old.etag):
            self._error(412, "ConditionNotMet")
            return True
        return False

    def _copy(self, path: str, source: str) -> None:
        self._sink.count("copy")
        blob = self._sink.blobs.get(source)
        if blob is None:
            self._error(404, "BlobNotFound")
            return
        copied = self._sink.copy(blob, path)
        self._wire.answer(202, **_written(copied), x_ms_copy_id="1", x_ms_copy_status="success")

    def _head_blob(self, path: str, _query: Fields, _headers: Fields) -> None:
        self._sink.count("head")
        blob = self._sink.blobs.get(path)
        if blob is None:
            self._wire.answer(404, x_ms_error_code="BlobNotFound")
        else:
            self._wire.answer(200, **_described(blob), Content_Length=blob.nbytes)

    def _get_blob(self, path: str, query: Fields, headers: Fields) -> None:
        blob = self._sink.blobs.get(path)
        if "comp" in query:  # a list of blocks: those that are not committed
            self._sink.count("list")
            names = self._sink.uploads.get(path, ("", {}))[1]
            listed = "".join(f"<Block><Name>{name}</Name><Size>1</Size></Block>" for name in names)
            self._wire.xml("BlockList", f"<UncommittedBlocks>{listed}</UncommittedBlocks>")
        elif blob is None:
            self._sink.count("get")
            self._error(404, "BlobNotFound")
        elif not self._wire.object(blob, headers, **_described(blob)):
            self._error(416, "InvalidRange")

    def _delete_blob(self, path: str, _query: Fields, _headers: Fields) -> None:
        self._sink.count("delete")
        if self._sink.remove(path):
            self._wire.answer(202)
        else:
            self._error(404, "BlobNotFound")

    def _batch(self, text: bytes) -> None:
        self._sink.count("delete")
        answers = []
        for number, call in enumerate(_CALL.finditer(text)):
            self._sink.remove(unquote(call["path"].decode()))
            answers.append(
                f"--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                "HTTP/1.1 202 Accepted\r\nx-ms-request-id: 1\r\n\r\n"
            )
        self._wire.answer(202, "".join(answers) + "--b--\r\n", Content_Type="multipart/mixed; boundary=b")


def _written(blob: Blob) -> dict[str, object]:
    return {"ETag": f'"0x{blob.etag}"', "Last_Modified": NOW_HTTP}


def _described(blob: Blob) -> dict[str, object]:
    return {
        **_written(blob),
        "Accept_Ranges": "bytes",
        "Content_Type": "application/octet-stream",
        "x_ms_blob_type": "BlockBlob",
        "x_ms_creation_time": NOW_HTTP,
        "x_ms_lease_status": "unlocked",
        "x_ms_lease_state": "available",
    }


def _properties(blob: Blob | None) -> str:
    etag = f"0x{blob.etag}" if blob else "0x1"
    described = f"<Last-Modified>{NOW_HTTP}</Last-Modified><Etag>{etag}</Etag>"
    if blob:
        described += (
            f"<Content-Length>{blob.nbytes}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
            "<BlobType>BlockBlob</BlobType><LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>"
        )
    return f"<Properties>{described}</Properties>"
