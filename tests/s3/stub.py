"""An S3 server that answers every request in the documented shape, and a proxy that plays all of Amazon's hosts."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import trustme

from tests.unit.stores.stub_server import Request, StubServer, answer, stub_server

_CREATED = b"<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>"
_COMPLETED = b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
_LISTED = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
_UPLOADS = b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
_SESSION = b"""<CreateSessionResult><Credentials><AccessKeyId>SESSION-KEY</AccessKeyId>
<SecretAccessKey>session-secret</SecretAccessKey><SessionToken>session-token</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>"""

_DOCUMENTS = {
    ("GET", "session"): _SESSION,
    ("GET", "list-type"): _LISTED,
    ("GET", "uploads"): _UPLOADS,
    ("POST", "delete"): b"<DeleteResult></DeleteResult>",
    ("POST", "uploads"): _CREATED,
    ("POST", "uploadId"): _COMPLETED,
}
OPERATIONS = {
    ("PUT", ""): "put_object",
    ("PUT", "partNumber"): "upload_part",
    ("POST", "uploads"): "create_multipart_upload",
    ("POST", "uploadId"): "complete_multipart_upload",
    ("POST", "delete"): "delete_objects",
    ("DELETE", ""): "delete_object",
    ("DELETE", "uploadId"): "abort_multipart_upload",
    ("GET", ""): "get_object",
    ("GET", "session"): "create_session",
    ("GET", "list-type"): "list_objects_v2",
    ("GET", "uploads"): "list_multipart_uploads",
    ("HEAD", ""): "head_object",
}


def operation(request: Request) -> str:
    """Name what was asked for, as the SDK does."""
    query = parse_qs(urlsplit(request.target).query, keep_blank_values=True)
    for (method, option), name in OPERATIONS.items():
        if option and request.method == method and option in query:
            return name
    return OPERATIONS[request.method, ""]


def answer_as_s3(request: Request) -> bytes:
    """Answer as S3 does; every object holds the digits."""
    if request.method == "HEAD":
        return b'HTTP/1.1 200 OK\r\ncontent-length: 10\r\netag: "e"\r\n\r\n'
    query = parse_qs(urlsplit(request.target).query, keep_blank_values=True)
    for (method, option), document in _DOCUMENTS.items():
        if request.method == method and option in query:
            return answer(200, document)
    if request.method == "GET":
        first, last = map(int, re.findall(r"\d+", request.headers["range"]))
        body = b"0123456789"[first : last + 1]
        content_range = f"bytes {first}-{first + len(body) - 1}/10"
        return answer(206, body, etag='"e"', content_range=content_range)
    return answer(204 if request.method == "DELETE" else 200, etag='"e"')


@dataclass
class AmazonProxy(StubServer):
    """A proxy behind which all hosts are one server, with a certificate for each of them."""

    authority: trustme.CA | None = None

    def _serve(self, sock, number: int) -> None:
        with suppress(OSError), sock.makefile("rb") as file:
            connect = self._read(file, number)
            assert connect is not None
            assert connect.method == "CONNECT"
            host = connect.target.rpartition(":")[0]
            sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        assert self.authority is not None
        self.authority.issue_cert(host).configure_cert(context)
        with suppress(OSError):
            inner = context.wrap_socket(sock, server_side=True)
            self._sockets.append(inner)
            super()._serve(inner, number)


@contextmanager
def amazon_proxy(directory: str) -> Iterator[AmazonProxy]:
    """Run the proxy; its authority's certificate is in ``directory/ca.pem``."""
    proxy = AmazonProxy(answer_as_s3, authority=trustme.CA())
    assert proxy.authority is not None
    proxy.authority.cert_pem.write_to_path(f"{directory}/ca.pem")
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


@contextmanager
def s3_stub(directory: str, *, tls: bool = False, respond: Callable[[Request], bytes] = answer_as_s3):
    """Run the server, with TLS under an authority whose certificate is in ``directory/ca.pem``."""
    context = None
    if tls:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(f"{directory}/ca.pem")
    with stub_server(respond, tls=context) as server:
        yield server
