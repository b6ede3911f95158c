"""The map of errors is complete: every class of the SDK, every code it knows."""

from __future__ import annotations

import socket

import azure.core.exceptions as sdk
import azure.identity
import pytest
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob import PartialBatchErrorException, StorageErrorCode

from dcp_cloud.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    DcpCloudError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
)
from dcp_cloud.stores.azure_errors import CLASSES, CODES, from_answer, translate, translated

# Codes that the service documents and the SDK's list does not have; the first of Azurite.
_BEYOND_THE_SDK = {
    "FeatureNotSupported",
    "AuthorizationPermissionMismatch",
    "KeyBasedAuthenticationNotPermitted",
    "PublicAccessNotPermitted",
    "BlobImmutableDueToPolicy",
    "Crc64Mismatch",
}
_SDK_CLASSES = [
    kind
    for module in (sdk, azure.identity)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
]
_EXPECTED = {
    sdk.ServiceRequestError: TransientError,
    sdk.ServiceRequestTimeoutError: TransientError,
    sdk.ServiceResponseError: TransientError,
    sdk.ServiceResponseTimeoutError: TransientError,
    sdk.IncompleteReadError: TransientError,
    sdk.DecodeError: TransientError,
    sdk.DeserializationError: TransientError,
    sdk.HttpResponseError: TransientError,
    sdk.ClientAuthenticationError: UnauthenticatedError,
    azure.identity.CredentialUnavailableError: UnauthenticatedError,
    azure.identity.AuthenticationRequiredError: UnauthenticatedError,
    sdk.SerializationError: InvalidRequestError,
    sdk.TooManyRedirectsError: InvalidRequestError,
}


class _Response:
    """An answer as the SDK's exceptions hold it."""

    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        self.status_code, self.reason = status, "reason"
        self.request = HttpRequest("GET", "https://account.blob.core.windows.net/box/key")
        self.content_type = ""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers = {**({"x-ms-error-code": code} if code else {}), **named}

    def text(self, _encoding: str | None = None) -> str:
        return ""


def _make(kind: type[Exception]) -> Exception:
    """Make one without calling it: their arguments are many, and only the class decides here."""
    error = kind.__new__(kind)
    Exception.__init__(error, "text")
    error.response = None  # type: ignore[attr-defined]
    error.message = "text"  # type: ignore[attr-defined]
    error._error_format = None  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("kind", _SDK_CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_of_the_sdk_is_mapped(kind: type[Exception]):
    """Nothing of the SDK leaves the store, and what is not expected is no endless retry."""
    assert any(base in CLASSES for base in kind.__mro__)
    error = translate(_make(kind), action="get_blob", key="key")
    assert isinstance(error, DcpCloudError)
    if kind in _EXPECTED:
        assert type(error) is _EXPECTED[kind]


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_in_the_map_is_one_of_the_service(code: str):
    """A misspelt code would never match."""
    assert code in {known.value for known in StorageErrorCode} | _BEYOND_THE_SDK


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "BlobNotFound", NotFoundError),
        (404, "ContainerNotFound", BucketNotFoundError),
        (409, "ContainerBeingDeleted", BucketNotFoundError),
        (409, "BlobAlreadyExists", AlreadyExistsError),
        (412, "ConditionNotMet", PreconditionError),
        (412, "LeaseIdMissing", InvalidRequestError),
        (403, "AuthenticationFailed", UnauthenticatedError),
        (401, "NoAuthenticationInformation", UnauthenticatedError),
        (403, "AuthorizationPermissionMismatch", PermissionDeniedError),
        (403, "AuthorizationFailure", PermissionDeniedError),
        (503, "ServerBusy", ThrottledError),
        (500, "InternalError", TransientError),
        (500, "OperationTimedOut", TransientError),
        (416, "InvalidRange", InvalidRequestError),
        (409, "BlobArchived", InvalidRequestError),
        (409, "SnapshotsPresent", InvalidRequestError),
        # Without a code, as proxies and gateways answer.
        (304, "", PreconditionError),
        (401, "", UnauthenticatedError),
        (403, "", PermissionDeniedError),
        (404, "", NotFoundError),
        (408, "", TransientError),
        (409, "", InvalidRequestError),
        (412, "", PreconditionError),
        (429, "", ThrottledError),
        (500, "", TransientError),
        (501, "", InvalidRequestError),
        (502, "", TransientError),
        (503, "", ThrottledError),
        (504, "", TransientError),
    ],
)
def test_codes_come_before_statuses(status: int, code: str, kind: type[StoreError]):
    """The service's code decides; where there is none, the status does."""
    error = translate(sdk.HttpResponseError(response=_Response(status, code)), action="get_blob", key="key")
    assert type(error) is kind
    assert error.key == "key"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, UnauthenticatedError), (403, UnauthenticatedError), (503, ThrottledError)]
)
def test_a_failed_sign_in_is_not_the_stores_refusal(status: int, kind: type[StoreError]):
    """The identity service answers 400 to a wrong secret; when it is busy, that passes."""
    error = translate(sdk.ClientAuthenticationError(response=_Response(status)), action="get_blob", key="key")
    assert type(error) is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"x-ms-retry-after-ms": "20", "retry-after": "1"}, 0.02),
        ({"retry-after": "Sun, 22 Nov 2026 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_is_asked_for_is_passed_on(headers: dict[str, str], seconds: float | None):
    """In seconds, whichever header it came in."""
    error = from_answer(503, headers, action="get_blob", key="key")
    assert isinstance(error, TransientError)
    assert error.retry_after_s == seconds


def test_only_the_first_line_of_a_message_is_kept():
    """Behind it stands what was signed, and what with."""
    error = from_answer(403, {}, action="a", key=None, message="Refused.\nsigned was sig=SECRET\nwith AAAA")
    assert str(error.cause).startswith("Refused. (HTTP 403")
    assert "AAAA" not in str(error)


def test_a_batch_that_failed_as_a_whole_is_translated():
    """The SDK's own exception for batches is an answer like others."""
    failure = PartialBatchErrorException("failed", _Response(403, "AuthorizationFailure"), [])
    assert type(translate(failure, action="delete_blobs", key="key")) is PermissionDeniedError


@pytest.mark.parametrize(
    ("number", "kind"), [(socket.EAI_NONAME, InvalidRequestError), (socket.EAI_AGAIN, TransientError)]
)
def test_an_unknown_host_is_a_wrong_account(number: int, kind: type[StoreError]):
    """An account that does not exist has no name; a name server that is away says something else."""
    cause = socket.gaierror(number, "no such name")
    with pytest.raises(kind) as caught, translated("get_blob", key="key"):
        raise TransientError("GET failed", key="key", cause=cause) from cause
    assert type(caught.value) is kind
    assert ("storage account" in str(caught.value)) == (kind is InvalidRequestError)
