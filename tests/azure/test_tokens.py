"""Tokens: asked for when needed, refreshed when old, renewed when refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError

from dcp_cloud.errors import ConfigError, DcpCloudError, UnauthenticatedError
from dcp_cloud.stores.base import ObjectStore
from tests.azure.stub import STORED, Reply, Request, Stub

Open = Callable[..., ObjectStore]

_CHALLENGE = (
    "Bearer authorization_uri=https://login.microsoftonline.com/tenant/oauth2/authorize "
    "resource_id=https://storage.azure.com"
)


@dataclass
class Tokens:
    """A credential that numbers its tokens."""

    lifetime_s: float = 3600.0
    error: Exception | None = None
    scopes: list[str] = field(default_factory=list)

    def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        if self.error is not None:
            raise self.error
        self.scopes.extend(scopes)
        return AccessToken(f"token-{len(self.scopes)}", int(time.time() + self.lifetime_s))


def _used(stub: Stub) -> list[str]:
    return [request.headers["authorization"] for request in stub.requests]


def test_a_token_serves_many_requests(tls_stub: Stub, open_at: Open):
    """While a token is fresh nobody asks for another one."""
    tokens = Tokens()
    store = open_at(tls_stub, credential_factory=lambda: tokens)
    for _ in range(3):
        store.put("a", [memoryview(b"x")])
    assert _used(tls_stub) == ["Bearer token-1"] * 3
    assert tokens.scopes == ["https://storage.azure.com/.default"]


def test_an_old_token_is_refreshed(tls_stub: Stub, open_at: Open):
    """A save that is longer than a token's life goes on with a new one."""
    tokens = Tokens(lifetime_s=1.0)
    store = open_at(tls_stub, credential_factory=lambda: tokens)
    store.put("a", [memoryview(b"x")])
    store.create_multipart("b")
    assert _used(tls_stub) == ["Bearer token-1", "Bearer token-2"]


def test_a_refused_token_is_renewed_and_the_body_sent_again(tls_stub: Stub, open_at: Open):
    """The service may refuse a token before its time; the request is then made again, whole."""

    def answer(request: Request) -> Reply:
        if request.headers["authorization"] == "Bearer token-1":
            return Reply(401, {"WWW-Authenticate": _CHALLENGE, "x-ms-error-code": "InvalidAuthenticationInfo"})
        return STORED

    tls_stub.answer = answer
    tokens = Tokens()
    open_at(tls_stub, credential_factory=lambda: tokens).put("a", [memoryview(b"one"), memoryview(b"two")])
    assert _used(tls_stub) == ["Bearer token-1", "Bearer token-2"]
    assert [request.body for request in tls_stub.requests] == [b"onetwo", b"onetwo"]


@pytest.mark.parametrize("kind", [CredentialUnavailableError, ClientAuthenticationError])
def test_no_token_is_unauthenticated(tls_stub: Stub, open_at: Open, kind: type[ClientAuthenticationError]):
    """Who cannot sign in learns where credentials are looked for."""
    store = open_at(tls_stub, credential_factory=lambda: Tokens(error=kind("no identity here")))
    with pytest.raises(UnauthenticatedError, match="AZURE_STORAGE_KEY"):
        store.head("a")
    assert tls_stub.requests == []


def _no_name() -> object:
    return os.environ["NO_SUCH_NAME"]


def _no_sign_in() -> object:
    raise CredentialUnavailableError("no identity here")


@pytest.mark.parametrize(("make", "kind"), [(_no_name, ConfigError), (_no_sign_in, UnauthenticatedError)])
def test_a_factory_that_fails_is_an_error_of_this_package(
    tls_stub: Stub, open_at: Open, make: Callable[[], object], kind: type[DcpCloudError]
):
    """Whatever it raises; a failed sign-in stays one."""
    store = open_at(tls_stub, credential_factory=make)
    for call in (lambda: store.put("a", [memoryview(b"x")]), lambda: store.head("a"), lambda: list(store.list())):
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
    assert tls_stub.requests == []


def test_many_threads_make_one_credential(tls_stub: Stub, open_at: Open):
    """Threads that come at once share client, credential and token: identity services throttle too."""
    made: list[Tokens] = []

    def make() -> Tokens:
        made.append(Tokens())
        return made[-1]

    store = open_at(tls_stub, credential_factory=make)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"a{number}", [memoryview(b"x")]), range(16)))
    assert len(made) == 1


def test_a_token_is_not_sent_in_the_clear(stub: Stub, open_at: Open):
    """Over http the store refuses before anything is sent."""
    with pytest.raises(ConfigError):
        open_at(stub, credential_factory=Tokens).head("a")
    assert stub.requests == []
