"""Google's statuses, codes and exceptions: all of them have a place in our tree."""

from __future__ import annotations

import inspect
import pickle
from email.message import Message

import pytest
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from dcp_cloud.errors import (
    BucketNotFoundError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
)
from dcp_cloud.stores.gcs_errors import CODES, from_answer, from_credentials


def _answer(status: int, body: bytes = b"", **headers: str) -> StoreError:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return from_answer(status, message, body, action="head on gs://b", key="a/b")


def _json(status: int, reason: str) -> StoreError:
    return _answer(status, b'{"error": {"message": "m", "errors": [{"reason": "%s"}]}}' % reason.encode())


def _xml(status: int, code: str) -> StoreError:
    return _answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())


# What each class of the SDK's errors means for us; subclasses follow their base.
_MEANING: dict[type[Exception], type[StoreError]] = {
    api.Redirection: InvalidRequestError,
    api.BadRequest: InvalidRequestError,
    api.Unauthorized: UnauthenticatedError,
    api.Forbidden: PermissionDeniedError,
    api.NotFound: NotFoundError,
    api.MethodNotAllowed: InvalidRequestError,
    api.Conflict: TransientError,
    api.LengthRequired: InvalidRequestError,
    api.PreconditionFailed: PreconditionError,
    api.RequestRangeNotSatisfiable: InvalidRequestError,
    api.TooManyRequests: ThrottledError,
    api.Cancelled: TransientError,
    api.MethodNotImplemented: InvalidRequestError,
    api.ServerError: TransientError,
}
_SDK_STATUSES = [
    member
    for _, member in inspect.getmembers(api, inspect.isclass)
    if issubclass(member, api.GoogleAPICallError) and member.code is not None
]
_AUTH_ERRORS = [
    member for _, member in inspect.getmembers(auth, inspect.isclass) if issubclass(member, auth.GoogleAuthError)
]


@pytest.mark.parametrize("error_type", _SDK_STATUSES, ids=lambda error_type: error_type.__name__)
def test_every_status_of_the_sdk_has_its_place(error_type: type[api.GoogleAPICallError]):
    """The SDK names the statuses that Google's services answer: each gives the error that its class means."""
    [expected] = [_MEANING[base] for base in error_type.__mro__ if base in _MEANING][:1]
    assert type(_answer(int(error_type.code))) is expected


@pytest.mark.parametrize("error_type", _AUTH_ERRORS, ids=lambda error_type: error_type.__name__)
def test_every_exception_of_the_auth_library_has_its_place(error_type: type[auth.GoogleAuthError]):
    """Failures of a connection or marked as retryable pass; all others are about the credentials."""
    passing = issubclass(error_type, (auth.TransportError, auth.TimeoutError, auth.ResponseError))
    error = error_type("m")
    assert type(from_credentials(error, key="gs://b")) is (TransientError if passing else UnauthenticatedError)


def test_a_retryable_refresh_error_may_pass():
    """The library itself says when a token service was only busy."""
    assert type(from_credentials(auth.RefreshError("m", retryable=True), key=None)) is TransientError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_xml(404, "NoSuchBucket"), BucketNotFoundError),
        (_xml(404, "NoSuchKey"), NotFoundError),
        (_xml(404, "NoSuchUpload"), NotFoundError),
        (_xml(403, "AccessDenied"), PermissionDeniedError),
        (_xml(403, "InvalidSecurity"), UnauthenticatedError),
        (_xml(400, "ExpiredToken"), UnauthenticatedError),
        (_xml(400, "BadDigest"), ChecksumMismatchError),
        (_xml(400, "CrcMismatch"), ChecksumMismatchError),
        (_xml(400, "RequestTimeout"), TransientError),
        (_xml(400, "InvalidPart"), InvalidRequestError),
        (_xml(412, "PreconditionFailed"), PreconditionError),
        (_xml(503, "SlowDown"), ThrottledError),
        (_json(412, "conditionNotMet"), PreconditionError),
        (_json(412, "orgPolicyConstraintFailed"), PermissionDeniedError),
        (_json(403, "rateLimitExceeded"), ThrottledError),
        (_json(403, "forbidden"), PermissionDeniedError),
        (_json(403, "retentionPolicyNotMet"), PermissionDeniedError),
        (_json(401, "required"), UnauthenticatedError),
        (_json(400, "required"), InvalidRequestError),
        (_json(503, "backendError"), TransientError),
        (_json(599, ""), TransientError),
    ],
)
def test_codes_say_more_than_statuses(error: StoreError, expected: type[StoreError]):
    """The error code decides where it is known, the status where it is not."""
    assert type(error) is expected


def test_a_redirect_names_the_endpoint():
    """A redirect means that the endpoint is not the service's address."""
    assert "endpoint_url" in str(_answer(302))


def test_the_text_of_a_message_decides_nothing():
    """Neither API's message is looked at."""
    body = (
        b'{"error": {"message": "NoSuchBucket conditionNotMet rateLimitExceeded", "errors": [{"reason": "invalid"}]}}'
    )
    assert type(_answer(400, body)) is InvalidRequestError


def test_errors_say_what_why_and_what_next():
    """Action, key, Google's code and text, status and hint; no secrets; and they survive pickling."""
    body = b'{"error": {"message": "bad access_token=ya29.secret", "errors": [{"reason": "forbidden"}]}}'
    error = _answer(403, body)
    text = str(error)
    for piece in ("head on gs://b failed", "a/b", "forbidden", "HTTP 403", "storage.objects.create"):
        assert piece in text
    assert "ya29" not in text
    assert str(pickle.loads(pickle.dumps(error))) == text


@pytest.mark.parametrize(("header", "expected"), [("3", 3.0), ("soon", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
def test_retry_after_is_read_as_seconds(header: str, expected: float | None):
    """Google sends seconds; anything else is passed over."""
    error = _answer(429, Retry_After=header)
    assert isinstance(error, TransientError)
    assert error.retry_after_s == expected


def test_the_table_maps_to_store_errors_only():
    """A code never becomes something that a caller of a store would not expect."""
    assert all(issubclass(kind, StoreError) for kind in CODES.values())
