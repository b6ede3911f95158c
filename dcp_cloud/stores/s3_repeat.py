"""Requests that differ in a few values from one that the SDK has made: made and signed again without it.

The SDK takes 0.6 CPU milliseconds to make a request, and several times that when many threads share the interpreter's
lock. Nearly all of it (endpoint rules, user agent, serialising, events) comes out the same for each part and range. So
the SDK makes one request of each kind, and the others are that one with another key, range or part number, a new date
and a new signature (Signature Version 4:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).

Whether that is right is not assumed. A pattern is used only if it gives, from the values of the SDK's own request, that
very request, byte for byte, signature included. Everything that does not (directory buckets with sessions of their own,
signatures of other kinds, none at all) goes through the SDK each time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<access_key>.+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, "
    r"SignedHeaders=(?P<names>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)
# Where the values of the SDK's arguments stand: in a header, or in the query.
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Range": "range",
        "IfMatch": "if-match",
        "ContentLength": "content-length",
        "ChecksumCRC32": "x-amz-checksum-crc32",
    }
)
_QUERY: Mapping[str, str] = MappingProxyType({"UploadId": "uploadId", "PartNumber": "partNumber"})
# New in each request: when it was made, who signs it, which call it belongs to.
_FRESH = frozenset({"authorization", "x-amz-date", "x-amz-security-token", "amz-sdk-invocation-id"})


class FrozenCredentials(Protocol):
    """What the SDK's credentials look like at one moment."""

    access_key: str
    secret_key: str
    token: str | None


class Signed(NamedTuple):
    """A request that can be sent."""

    method: str
    url: str
    headers: list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What differs between two requests of equal arguments."""

    date: str
    invocation: str


class Pattern:
    """A request of the SDK from which others are made.

    Args:
        request: The request, signed.
        key: Key of the object that it is for.

    Raises:
        ValueError: It is of a kind that cannot be repeated.
    """

    def __init__(self, request: Signed, key: str) -> None:
        headers = {name.lower(): value for name, value in request.headers}
        found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        parts = urlsplit(request.url)
        tail = "/" + quote(key, safe="/~")
        if found is None or "x-amz-date" not in headers or not parts.path.endswith(tail):
            raise ValueError("not a request that can be repeated")
        if request.method != "GET" and headers.get("x-amz-content-sha256") != "UNSIGNED-PAYLOAD":
            raise ValueError("the signature covers the body")
        self._method = request.method
        self._site = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.removesuffix(tail)
        self._query = [pair.partition("=")[::2] for pair in parts.query.split("&")] if parts.query else []
        self._headers = [(name, value) for name, value in request.headers if name.lower() not in _FRESH]
        self._host = headers.get("host", _host(parts.scheme, parts.netloc))
        self._region, self._service = found["region"], found["service"]
        self._names = found["names"].split(";")
        self._has_invocation = "amz-sdk-invocation-id" in headers
        self._signing_key = ("", "", b"")

    @classmethod
    def of(
        cls, request: Signed, key: str, arguments: Mapping[str, object], credentials: FrozenCredentials
    ) -> Pattern | None:
        """Take a request as a pattern, if it turns out right.

        Args:
            request: The request, made and signed by the SDK.
            key: Key of the object that it is for.
            arguments: Its arguments beside bucket and key.
            credentials: What it should have been signed with.

        Returns:
            The pattern, or None if this kind of request has to be made by the SDK each time.
        """
        try:
            pattern = cls(request, key)
        except ValueError:
            return None
        headers = {name.lower(): value for name, value in request.headers}
        moment = _Moment(date=headers["x-amz-date"], invocation=headers.get("amz-sdk-invocation-id", ""))
        again = pattern._make(key, arguments, credentials, moment)
        is_same = again.url == request.url and {name.lower(): value for name, value in again.headers} == headers
        return pattern if is_same and len(headers) == len(request.headers) else None

    def make(self, key: str, arguments: Mapping[str, object], credentials: FrozenCredentials) -> Signed:
        """Make and sign a request.

        Args:
            key: Key of the object.
            arguments: The arguments beside bucket and key: other values of those that the pattern has.
            credentials: What to sign with.

        Returns:
            The request.
        """
        date = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        return self._make(key, arguments, credentials, _Moment(date=date, invocation=str(uuid.uuid4())))

    def _make(
        self, key: str, arguments: Mapping[str, object], credentials: FrozenCredentials, moment: _Moment
    ) -> Signed:
        path = f"{self._path}/{quote(key, safe='/~')}"
        values = {_QUERY[name]: quote(str(value), safe="-._~") for name, value in arguments.items() if name in _QUERY}
        query = [(name, values.get(name, value)) for name, value in self._query]
        changed = {_HEADERS[name]: str(value) for name, value in arguments.items() if name in _HEADERS}
        headers = [(name, changed.get(name.lower(), value)) for name, value in self._headers]
        headers.append(("X-Amz-Date", moment.date))
        if credentials.token:
            headers.append(("X-Amz-Security-Token", credentials.token))
        if self._has_invocation:
            headers.append(("amz-sdk-invocation-id", moment.invocation))
        headers.append(("Authorization", self._sign(path, query, headers, credentials, moment.date)))
        text = "&".join(f"{name}={value}" for name, value in query)
        return Signed(self._method, f"{self._site}{path}" + (f"?{text}" if text else ""), headers)

    def _sign(
        self,
        path: str,
        query: list[tuple[str, str]],
        headers: list[tuple[str, str]],
        credentials: FrozenCredentials,
        date: str,
    ) -> str:
        values = {name.lower(): value for name, value in headers}
        values.setdefault("host", self._host)
        names = [name for name in self._names if name != "x-amz-security-token"]
        if credentials.token:
            names = sorted([*names, "x-amz-security-token"])
        lines = [
            self._method,
            path,
            "&".join(f"{name}={value}" for name, value in sorted(query)),
            *(f"{name}:{' '.join(values.get(name, '').split())}" for name in names),
            "",
            ";".join(names),
            values.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ]
        scope = f"{date[:8]}/{self._region}/{self._service}/aws4_request"
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"
        signature = _hmac(self._key_for(credentials.secret_key, date[:8]), text).hex()
        return (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}"
        )

    def _key_for(self, secret_key: str, day: str) -> bytes:
        """Give the day's signing key, derived once."""
        known = self._signing_key
        if known[:2] != (secret_key, day):
            derived = f"AWS4{secret_key}".encode()
            for text in (day, self._region, self._service, "aws4_request"):
                derived = _hmac(derived, text)
            known = self._signing_key = (secret_key, day, derived)
        return known[2]


class Patterns:
    """The patterns of one client, made when first needed.

    Args:
        ask: Has the SDK make and sign a request, without sending it; None if it made none.
        credentials: Gives the credentials in force, renewed if need be.
    """

    def __init__(
        self,
        ask: Callable[[str, str, Mapping[str, object]], Signed | None],
        credentials: Callable[[], FrozenCredentials | None],
    ) -> None:
        self._ask = ask
        self._credentials = credentials
        self._known: dict[tuple[str, frozenset[str]], Pattern | None] = {}

    def make(self, operation: str, key: str, arguments: Mapping[str, object]) -> Signed | None:
        """Make a request without the SDK.

        Args:
            operation: Method of the SDK's client.
            key: Key of the object.
            arguments: The method's arguments beside bucket and key.

        Returns:
            The request, or None if the SDK has to make it.
        """
        if not {"", ".", ".."}.isdisjoint(key.split("/")) or not arguments.keys() <= _HEADERS.keys() | _QUERY.keys():
            return None
        credentials = self._credentials()
        if credentials is None:
            return None
        kind = (operation, frozenset(arguments))
        if kind not in self._known:  # two threads may ask at once: the second answer is as good as the first
            request = self._ask(operation, key, arguments)
            self._known[kind] = None if request is None else Pattern.of(request, key, arguments, credentials)
        pattern = self._known[kind]
        return None if pattern is None else pattern.make(key, arguments, credentials)

    def give_up(self) -> None:
        """Let the SDK make all further requests: the server did not like one that was made here."""
        for kind in tuple(self._known):
            self._known[kind] = None


def _host(scheme: str, netloc: str) -> str:
    return netloc.removesuffix(":443" if scheme == "https" else ":80")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
