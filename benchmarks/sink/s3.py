"""As much of S3 as a checkpoint needs. Google's XML API is the same as far as it goes."""

from __future__ import annotations

from urllib.parse import unquote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from benchmarks.sink.memory import Blob
from benchmarks.sink.wire import NOW, NOW_HTTP, Wire

Fields = dict[str, str]


class S3:
    """Answers requests to ``/bucket/key``."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sink = wire.sink

    def serve(self, method: str, path: str, query: Fields, headers: Fields) -> None:
        kind = "object" if path.partition("/")[2] else "bucket"
        handler = getattr(self, f"_{method.lower()}_{kind}", None)
        if handler is None:
            self.error(405, "MethodNotAllowed")
        else:
            handler(path, query, headers)

    def error(self, status: int, code: str) -> None:
        self._wire.xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status)

    def _put_bucket(self, _path: str, _query: Fields, headers: Fields) -> None:
        self._wire.text(headers)
        self._wire.answer(200)

    def _head_bucket(self, _path: str, _query: Fields, _headers: Fields) -> None:
        self._sink.count("head")
        self._wire.answer(200, x_amz_bucket_region="us-east-1")

    def _get_bucket(self, path: str, query: Fields, _headers: Fields) -> None:
        self._sink.count("list")
        if "location" in query:
            self._wire.xml("LocationConstraint", "")
        elif "uploads" in query:
            entries = "".join(
                f"<Upload><Key>{escape(key.partition('/')[2])}</Key><UploadId>{name}</UploadId></Upload>"
                for name, (key, _) in list(self._sink.uploads.items())
            )
            self._wire.xml("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{entries}")
        else:
            self._list(path.strip("/"), query)

    def _list(self, bucket: str, query: Fields) -> None:
        prefix = query.get("prefix", "")
        found, prefixes = self._sink.below(f"{bucket}/{prefix}", query.get("delimiter", ""))
        contents = "".join(
            f"<Contents><Key>{escape(key.partition('/')[2])}</Key><LastModified>{NOW}</LastModified>"
            f"<ETag>&quot;{blob.etag}&quot;</ETag><Size>{blob.nbytes}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, blob in found
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(one.partition('/')[2])}</Prefix></CommonPrefixes>" for one in prefixes
        )
        self._wire.xml(
            "ListBucketResult",
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found) + len(prefixes)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}{common}",
        )

    def _post_bucket(self, path: str, _query: Fields, headers: Fields) -> None:
        text = self._wire.text(headers)
        self._sink.count("delete")
        for element in ET.fromstring(text).iter():
            if element.tag.rpartition("}")[2] == "Key":
                self._sink.remove(f"{path.strip('/')}/{element.text}")
        self._wire.xml("DeleteResult", "")

    def _post_object(self, path: str, query: Fields, headers: Fields) -> None:
        text = self._wire.text(headers)
        bucket, _, key = path.partition("/")
        if "uploads" in query:
            self._sink.count("create")
            name = f"upload{next(self._sink.ids)}"
            self._sink.uploads[name] = (path, {})
            self._wire.xml(
                "InitiateMultipartUploadResult",
                f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{name}</UploadId>",
            )
            return
        self._sink.count("complete")
        parts = self._sink.uploads.pop(query["uploadId"])[1]
        numbers = [e.text for e in ET.fromstring(text).iter() if e.tag.rpartition("}")[2] == "PartNumber"]
        blob = self._sink.store(path, [parts[str(number)] for number in numbers])
        self._wire.xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><ETag>&quot;{blob.etag}&quot;</ETag>",
        )

    def _put_object(self, path: str, query: Fields, headers: Fields) -> None:
        if "x-amz-copy-source" in headers:
            self._wire.text(headers)
            self._copy(path, unquote(headers["x-amz-copy-source"]).lstrip("/"))
            return
        segment = self._wire.body(headers)
        if "partNumber" in query:
            self._sink.count("put_part", bytes_in=segment.nbytes)
            parts = self._sink.uploads[query["uploadId"]][1]
            old, parts[query["partNumber"]] = parts.get(query["partNumber"]), segment
            self._sink.arena.give([old] if old else [])
            self._wire.answer(200, ETag=f'"{next(self._sink.ids):032x}"')
            return
        self._sink.count("put", bytes_in=segment.nbytes)
        old_blob, match = self._sink.blobs.get(path), headers.get("if-match", "").strip('"')
        if (headers.get("if-none-match") == "*" and old_blob) or (match and (not old_blob or match != old_blob.etag)):
            self._sink.arena.give([segment])
            self.error(412, "PreconditionFailed")
            return
        self._wire.answer(200, ETag=f'"{self._sink.store(path, [segment]).etag}"')

    def _copy(self, path: str, source: str) -> None:
        self._sink.count("copy")
        blob = self._sink.blobs.get(source)
        if blob is None:
            self.error(404, "NoSuchKey")
            return
        copied = self._sink.copy(blob, path)
        self._wire.xml("CopyObjectResult", f"<LastModified>{NOW}</LastModified><ETag>&quot;{copied.etag}&quot;</ETag>")

    def _head_object(self, path: str, _query: Fields, _headers: Fields) -> None:
        self._sink.count("head")
        blob = self._sink.blobs.get(path)
        if blob is None:
            self._wire.answer(404)
        else:
            self._wire.answer(200, **_describe(blob), Content_Length=blob.nbytes)

    def _get_object(self, path: str, _query: Fields, headers: Fields) -> None:
        blob = self._sink.blobs.get(path)
        if blob is None:
            self._sink.count("get")
            self.error(404, "NoSuchKey")
        elif not self._wire.object(blob, headers, **_describe(blob)):
            self.error(416, "InvalidRange")

    def _delete_object(self, path: str, query: Fields, _headers: Fields) -> None:
        if "uploadId" in query:
            self._sink.count("abort")
            self._sink.arena.give(self._sink.uploads.pop(query["uploadId"], ("", {}))[1].values())
        else:
            self._sink.count("delete")
            self._sink.remove(path)
        self._wire.answer(204)


def _describe(blob: Blob) -> dict[str, object]:
    return {
        "ETag": f'"{blob.etag}"',
        "Last_Modified": NOW_HTTP,
        "Accept_Ranges": "bytes",
        "Content_Type": "application/octet-stream",
        "x_goog_generation": blob.number,
        "x_goog_stored_content_length": blob.nbytes,
    }
