"""Credentials: found by the SDK's chain, refreshed in mid-transfer, never stored."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials, Credentials

from dcp_cloud.errors import TransientError, UnauthenticatedError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.registry import open_store
from tests.gcs.stub import Answer, Request, Stub, json_answer, json_error

Open = Callable[..., ObjectStore]
_RESOURCE = {"name": "a", "size": "4", "generation": "1"}


class Numbered(Credentials):
    """Tokens ``token-1``, ``token-2`` …, a new one with each refresh."""

    def __init__(self, *, lifetime_s: float = 3600.0) -> None:
        super().__init__()
        self.refreshes = 0
        self.lifetime_s = lifetime_s

    def refresh(self, request: object) -> None:
        self.refreshes += 1
        self.token = f"token-{self.refreshes}"
        now = datetime.now(timezone.utc).replace(tzinfo=None)  # google-auth compares without zone
        self.expiry = now + timedelta(seconds=self.lifetime_s)


class Failing(Credentials):
    """A refresh that fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def refresh(self, request: object) -> None:
        raise self._error


def _give(credentials: Any) -> Any:
    return credentials


def _factory(credentials: Any) -> Callable[[], Any]:
    return functools.partial(_give, credentials)


def _tokens(stub: Stub) -> list[str | None]:
    return [request.headers.get("authorization") for request in stub.requests]


def test_every_request_carries_a_token(stub: Stub, open_at: Open):
    """One token serves many requests."""
    credentials = Numbered()
    stub.answer = lambda _request: json_answer(_RESOURCE)
    store = open_at(credentials_factory=_factory(credentials))
    for _ in range(3):
        store.head("a")
    assert _tokens(stub) == ["Bearer token-1"] * 3


def test_an_expired_token_is_replaced_before_it_is_sent(stub: Stub, open_at: Open):
    """A token that has run out between two requests is refreshed without a refusal."""
    credentials = Numbered(lifetime_s=-1.0)
    stub.answer = lambda _request: json_answer(_RESOURCE)
    store = open_at(credentials_factory=_factory(credentials))
    store.head("a")
    store.head("a")
    assert _tokens(stub) == ["Bearer token-1", "Bearer token-2"]


def test_a_refused_token_is_replaced_and_the_request_sent_again(stub: Stub, open_at: Open):
    """A 401 in mid-transfer costs one refresh; the body goes out again, whole."""

    def answer(request: Request) -> Answer:
        if request.headers["authorization"] == "Bearer token-1":
            return json_error(401, "authError")
        return json_answer(_RESOURCE)

    stub.answer = answer
    store = open_at(credentials_factory=_factory(Numbered()))
    store.put("a", [memoryview(b"da"), memoryview(b"ta")])
    assert _tokens(stub) == ["Bearer token-1", "Bearer token-2"]
    assert all(b"data" in request.body for request in stub.requests)


def test_many_threads_refresh_a_refused_token_once(stub: Stub, open_at: Open):
    """Whoever finds the token already replaced uses the new one."""
    credentials, barrier = Numbered(), Barrier(8)

    def answer(request: Request) -> Answer:
        if request.headers["authorization"] == "Bearer token-1":
            barrier.wait(10)
            return json_error(401, "authError")
        return json_answer(_RESOURCE)

    stub.answer = answer
    store = open_at(credentials_factory=_factory(credentials))
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(store.head, ["a"] * 8))) == 8
    assert credentials.refreshes == 2


def test_a_second_refusal_stands(stub: Stub, open_at: Open):
    """A fresh token that is refused too means wrong credentials: no endless loop."""
    stub.answer = lambda _request: json_error(401, "authError")
    with pytest.raises(UnauthenticatedError):
        open_at(credentials_factory=_factory(Numbered())).head("a")
    assert len(stub.requests) == 2


def test_anonymous_requests_carry_nothing_and_are_not_repeated(stub: Stub, open_at: Open):
    """Without credentials there is nothing to refresh."""
    stub.answer = lambda _request: json_error(401, "required")
    with pytest.raises(UnauthenticatedError):
        open_at(anonymous=True).head("a")
    with pytest.raises(UnauthenticatedError):
        open_at(credentials_factory=AnonymousCredentials).head("a")
    assert _tokens(stub) == [None, None]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (auth.TransportError("token service away"), TransientError),
        (auth.RefreshError("busy", retryable=True), TransientError),
        (auth.RefreshError("invalid_grant"), UnauthenticatedError),
        (auth.ReauthFailError("again"), UnauthenticatedError),
        (ValueError("bad key"), UnauthenticatedError),
    ],
)
def test_a_failed_refresh_is_typed(stub: Stub, open_at: Open, error: Exception, expected: type[Exception]):
    """What may pass is transient, the rest is the user's to mend."""
    with pytest.raises(expected) as caught:
        open_at(credentials_factory=_factory(Failing(error))).head("a")
    assert type(caught.value) is expected
    assert stub.requests == []


def test_no_credentials_at_all_is_a_clear_error(stub: Stub):
    """Nothing configured: the error says what to do, and nothing is sent."""
    store = open_store(f"gs://bucket?endpoint_url={stub.url}")
    with pytest.raises(UnauthenticatedError, match="application default credentials"):
        store.head("a")
    store.close()
    assert stub.requests == []


def test_a_pickled_store_holds_no_token(stub: Stub, open_at: Open):
    """A store travels with the recipe for its credentials, not with what it got from it."""
    stub.answer = lambda _request: json_answer(_RESOURCE)
    store = open_at(credentials_factory=Numbered)
    store.head("a")
    data = pickle.dumps(store)
    assert b"token-1" not in data
    assert "token-1" not in repr(store)
    copy: ObjectStore = pickle.loads(data)
    copy.head("a")
    copy.close()
    assert _tokens(stub) == ["Bearer token-1"] * 2


def _service_account_file(path: Path, token_uri: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "1",
                "private_key": key.decode(),
                "client_email": "saver@project.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": token_uri,
            }
        )
    )


def test_a_service_account_file_is_used(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``GOOGLE_APPLICATION_CREDENTIALS`` names a key file; its signed request becomes a token."""
    path = tmp_path / "key.json"
    _service_account_file(path, f"{stub.url}/token")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    stub.script(
        json_answer({"access_token": "from-key", "expires_in": 3600, "token_type": "Bearer"}), json_answer(_RESOURCE)
    )
    store = open_store("gs://bucket", config=GCSConfig(endpoint_url=stub.url))
    store.head("a")
    store.close()
    grant, request = stub.requests
    assert grant.path == "/token"
    assert b"jwt-bearer" in grant.body
    assert request.headers["authorization"] == "Bearer from-key"


def test_a_workload_identity_is_used(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A configuration of workload identity federation exchanges the platform's token for Google's."""
    (tmp_path / "platform-token").write_text("of-the-platform")
    path = tmp_path / "federation.json"
    path.write_text(
        json.dumps(
            {
                "type": "external_account",
                "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"{stub.url}/sts",
                "credential_source": {"file": str(tmp_path / "platform-token")},
            }
        )
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    stub.script(
        json_answer(
            {
                "access_token": "federated",
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": 3600,
            }
        ),
        json_answer(_RESOURCE),
    )
    store = open_store("gs://bucket", config=GCSConfig(endpoint_url=stub.url))
    store.head("a")
    store.close()
    exchange, request = stub.requests
    assert b"of-the-platform" in exchange.body
    assert request.headers["authorization"] == "Bearer federated"


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_emulator_of_the_environment_is_used(stub: Stub, monkeypatch: pytest.MonkeyPatch, scheme: str):
    """``STORAGE_EMULATOR_HOST``, with or without a scheme, means its address and no credentials."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", scheme + stub.url.removeprefix("http://"))
    stub.answer = lambda _request: json_answer(_RESOURCE)
    store = open_store("gs://bucket")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    for each in (store, pickle.loads(pickle.dumps(store))):
        assert each.head("a").etag == "1"
        each.close()
    assert _tokens(stub) == [None, None]
