"""The connection to Google Cloud Storage: google-auth authorises each request, the wire sends it."""

from __future__ import annotations

import json
import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import google.auth
import requests
from google.auth.credentials import AnonymousCredentials, with_scopes_if_required
from google.auth.transport.requests import Request

from dcp_cloud.errors import BucketNotFoundError, DcpCloudError, NotFoundError, TransientError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.gcs_errors import from_answer, from_credentials
from dcp_cloud.stores.wire import Wire, WireConfig, WireResponse

_DEFAULT_ENDPOINT = "https://storage.googleapis.com"
# Objects may be read, written and deleted, buckets not administered.
# Source: https://docs.cloud.google.com/storage/docs/oauth-scopes
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
# An error document is a few hundred bytes; more than this is not read of one.
_MAX_ERROR_BYTES = 64 * 1024

Query = Sequence[tuple[str, str]]
Headers = Sequence[tuple[str, str]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Session:
    """What one process uses: sockets and locks do not survive a fork."""

    pid: int
    wire: Wire
    credentials: Any
    refresher: Request
    lock: threading.Lock


class GCSClient:
    """Sends requests about one bucket. Thread-safe; pickles as its configuration; connects when first used.

    Args:
        bucket: Bucket name.
        config: How to reach it.
    """

    def __init__(self, bucket: str, config: GCSConfig) -> None:
        self.bucket = bucket
        self.config = config
        self._endpoint = (config.endpoint_url or _DEFAULT_ENDPOINT).rstrip("/")
        self._lock = threading.Lock()
        self._made: _Session | None = None

    def __reduce__(self) -> tuple[type[GCSClient], tuple[str, GCSConfig]]:
        return type(self), (self.bucket, self.config)

    def __repr__(self) -> str:
        return f"GCSClient({self.bucket!r}, {self.config!r})"

    @property
    def objects_path(self) -> str:
        """Path of the bucket's objects in the JSON API."""
        return f"/storage/v1/b/{quote(self.bucket, safe='')}/o"

    def object_path(self, key: str) -> str:
        """Path of an object in the JSON API."""
        return f"{self.objects_path}/{quote(key, safe='')}"

    def xml_path(self, key: str = "") -> str:
        """Path of an object, or of the bucket, in the XML API."""
        path = f"/{quote(self.bucket, safe='')}"
        return f"{path}/{quote(key)}" if key else path

    def send(
        self,
        method: str,
        path: str,
        *,
        action: str,
        key: str | None,
        query: Query = (),
        headers: Headers = (),
        body: Buffers = (),
        replay: bool = True,
        accept: Collection[int] = (),
    ) -> WireResponse:
        """Send a request and check the status of its answer.

        Args:
            method: HTTP method.
            path: Quoted path.
            action: What is being done, for error messages.
            key: Object key, for error messages.
            query: Query parameters.
            headers: Header fields.
            body: What to send.
            replay: Whether the request may be sent again over another connection without being asked.
            accept: Statuses besides 2xx that the caller understands.

        Returns:
            The answer; the caller reads it or gives it up.

        Raises:
            StoreError: The server refused, or could not be reached.
        """
        url = self._endpoint + target(path, query)
        session = self._session()

        def attempt(proof: Mapping[str, str]) -> WireResponse:
            fields = [*headers, *proof.items(), ("User-Agent", "dcp-cloud")]
            return session.wire.request(method, url, fields, body, key=key, replay=replay)

        proof = self._authorize(session, method, url)
        response = attempt(proof)
        if response.status == 401 and (token := proof.get("authorization")):
            # A token may end before its time; a second refusal stands.
            response.close()
            response = attempt(self._authorize(session, method, url, refused=token))
        if 200 <= response.status < 300 or response.status in accept:
            return response
        with response:
            document = response.read(_MAX_ERROR_BYTES) if method != "HEAD" else b""
            raise from_answer(response.status, response.headers, document, action=action, key=key or self.uri)

    def json(self, method: str, path: str, *, query: Query = (), document: object = None, **request: Any) -> Any:  # noqa: ANN401 - JSON
        """Call the JSON API.

        Args:
            method: HTTP method.
            path: Quoted path.
            query: Query parameters.
            document: What to send, as JSON.
            request: The other arguments of :meth:`send`.

        Returns:
            The answer's document; None if it is empty.
        """
        if document is not None:
            request["body"] = [memoryview(json.dumps(document).encode())]
            request["headers"] = [("Content-Type", "application/json; charset=UTF-8")]
        with self.send(method, path, query=[*query, *self.billing], **request) as response:
            content = response.read()
        return parse(json.loads, content, key=request["key"]) if content else None

    def xml(self, method: str, path: str, **request: Any) -> tuple[ET.Element | None, WireResponse]:  # noqa: ANN401
        """Call the XML API.

        Args:
            method: HTTP method.
            path: Quoted path.
            request: The other arguments of :meth:`send`.

        Returns:
            The answer's document, None if it is empty, and its head.
        """
        with self.send(method, path, **request) as response:
            content = response.read() if method != "HEAD" else b""
        return parse(ET.fromstring, content, key=request["key"]) if content else None, response

    @property
    def uri(self) -> str:
        """The bucket as text that may be shown."""
        return f"gs://{self.bucket}"

    @property
    def billing(self) -> Query:
        """The JSON API's parameter that names who pays."""
        return [("userProject", self.config.user_project)] if self.config.user_project else []

    def explain_not_found(self, error: NotFoundError) -> NotFoundError:
        """Find out what is missing: the JSON API's answer is the same for the object and for the bucket.

        Args:
            error: What a request about an object raised.

        Returns:
            The error to raise: ``BucketNotFoundError`` if the bucket is known to be missing.
        """
        try:
            self.json(
                "GET",
                self.objects_path,
                query=[("maxResults", "1"), ("fields", "kind")],
                action=f"looking for {self.uri}",
                key=self.uri,
            )
        except NotFoundError as missing:
            return bucket_not_found(missing)
        except DcpCloudError:
            return error  # whoever may not list is told what is known
        return error

    def close(self) -> None:
        """Close all resting connections; the next request connects anew."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.wire.close()
            made.refresher.session.close()

    def _session(self) -> _Session:
        made = self._made
        if made is not None and made.pid == os.getpid():
            return made
        with self._lock:
            if self._made is None or self._made.pid != os.getpid():
                self._made = self._make_session()
            return self._made

    def _make_session(self) -> _Session:
        config = self.config
        transport = requests.Session()
        if config.ca_bundle is not None:
            transport.verify = config.ca_bundle
        refresher = Request(transport)
        authorities = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        wire = Wire(
            WireConfig(
                connect_timeout_s=config.connect_timeout_s,
                read_timeout_s=config.read_timeout_s,
                verify_tls=config.verify_tls,
                # The same that the SDK trusts.
                ca_bundle=config.ca_bundle or authorities or requests.utils.DEFAULT_CA_BUNDLE_PATH,
                max_idle=config.max_pool_connections,
            )
        )
        try:
            credentials = _find_credentials(config, refresher)
        except Exception as error:
            transport.close()
            raise from_credentials(error, key=self.uri) from error
        return _Session(os.getpid(), wire, credentials, refresher, threading.Lock())

    def _authorize(self, session: _Session, method: str, url: str, *, refused: str = "") -> Mapping[str, str]:
        """Give the header fields that authorise a request, with another token than the one that was refused."""
        headers: dict[str, str] = {}
        try:
            # One thread refreshes, the others wait for what it gets.
            with session.lock:
                session.credentials.before_request(session.refresher, method, url, headers)
                if refused and headers.get("authorization") == refused:
                    session.credentials.refresh(session.refresher)
                    session.credentials.before_request(session.refresher, method, url, headers)
        except Exception as error:
            raise from_credentials(error, key=self.uri) from error
        if self.config.user_project:
            headers["x-goog-user-project"] = self.config.user_project
        return headers


def bucket_not_found(error: NotFoundError) -> BucketNotFoundError:
    """Say that the bucket is missing, from the answer to a request that can miss nothing else."""
    return BucketNotFoundError(
        error.message,
        key=error.key,
        cause=error.cause,
        hint="check the bucket's name and the endpoint; buckets are not created for you",
    )


def target(path: str, query: Query) -> str:
    """Write path and query of a URL."""
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path


def parse(parser: Callable[[bytes], T], content: bytes, *, key: str | None) -> T:
    """Read an answer's document.

    Raises:
        TransientError: It is none: something on the way answered instead of the service.
    """
    try:
        return parser(content)
    except (ValueError, ET.ParseError) as error:
        raise TransientError("the answer cannot be read", key=key, cause=error) from error


def _find_credentials(config: GCSConfig, refresher: Request) -> Any:  # noqa: ANN401 - the library is not typed
    if config.anonymous:
        return AnonymousCredentials()  # type: ignore[no-untyped-call]
    if config.credentials_factory is not None:
        found = config.credentials_factory()
    else:
        # Without scopes at first: with them, the library would ask another service for the name of a project.
        found = google.auth.default(request=refresher)[0]
    return with_scopes_if_required(found, _SCOPES)  # type: ignore[no-untyped-call]  # the library is not typed
