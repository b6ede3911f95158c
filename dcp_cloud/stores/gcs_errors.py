"""The one place where Google's statuses, error codes and exceptions become errors of this package."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from email.message import Message
from types import MappingProxyType
from typing import Any

from google.auth import exceptions as auth

from dcp_cloud.errors import (
    BucketNotFoundError,
    ChecksumMismatchError,
    DcpCloudError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
    redact,
)

_CREDENTIALS_HINT = (
    "configure application default credentials (gcloud auth application-default login, GOOGLE_APPLICATION_CREDENTIALS, "
    "a workload identity), or add ?anonymous=true for a public bucket"
)
_PERMISSION_HINT = (
    "a checkpoint needs storage.objects.create, get, list and delete and storage.multipartUploads.create, abort and "
    "list: the role Storage Object User has them"
)
_USER_PROJECT_HINT = "if the requester pays for this bucket, name the project to bill with ?user_project=…"

# Sources: https://docs.cloud.google.com/storage/docs/json_api/v1/status-codes (reasons, lower case) and
# https://docs.cloud.google.com/storage/docs/xml-api/reference-status (codes, upper case). What is not listed is
# decided by the HTTP status.
CODES: Mapping[str, type[StoreError]] = MappingProxyType(
    {
        "NoSuchBucket": BucketNotFoundError,
        "NoSuchKey": NotFoundError,
        "NoSuchUpload": NotFoundError,
        "AuthenticationRequired": UnauthenticatedError,
        "ExpiredToken": UnauthenticatedError,
        "InvalidSecurity": UnauthenticatedError,
        "RequestTimeTooSkewed": UnauthenticatedError,
        "BadDigest": ChecksumMismatchError,
        "CrcMismatch": ChecksumMismatchError,
        "SlowDown": ThrottledError,
        "TooManyRequests": ThrottledError,
        "IncompleteBody": TransientError,
        "RequestTimeout": TransientError,
        "OperationAborted": TransientError,
        "PreconditionFailed": PreconditionError,
        "conditionNotMet": PreconditionError,
        # A 412 too, but about the organisation's rules.
        "orgPolicyConstraintFailed": PermissionDeniedError,
        "rateLimitExceeded": ThrottledError,
        "userRateLimitExceeded": ThrottledError,
        "usageLimits.rateLimitExceeded": ThrottledError,
        "uploadBrokenConnection": TransientError,
    }
)

STATUSES: Mapping[int, type[StoreError]] = MappingProxyType(
    {
        401: UnauthenticatedError,
        403: PermissionDeniedError,
        404: NotFoundError,
        408: TransientError,
        # Two writers met; Google's guide to retrying has it repeated.
        409: TransientError,
        410: NotFoundError,
        412: PreconditionError,
        429: ThrottledError,
        499: TransientError,
        501: InvalidRequestError,
    }
)

_CODE_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "required": _USER_PROJECT_HINT,
        "UserProjectMissing": _USER_PROJECT_HINT,
        "RequestTimeTooSkewed": "set this machine's clock",
        "retentionPolicyNotMet": "the bucket's retention policy does not let the object be replaced or deleted yet",
        "objectUnderActiveHold": "release the hold on the object, or save to another prefix",
    }
)

_TYPE_HINTS: Mapping[type[StoreError], str] = MappingProxyType(
    {
        UnauthenticatedError: _CREDENTIALS_HINT,
        PermissionDeniedError: _PERMISSION_HINT,
        BucketNotFoundError: "check the bucket's name and the endpoint; buckets are not created for you",
    }
)

# Exceptions that the library itself does not always mark as retryable although they are; all others are the user's.
_TRANSIENT_AUTH = ("TransportError", "TimeoutError", "ResponseError")


def from_answer(status: int, headers: Message, body: bytes, *, action: str, key: str | None) -> StoreError:
    """Turn an error answer of the server into an error of this package.

    Args:
        status: HTTP status.
        headers: Header fields of the answer.
        body: Its body: the JSON API's, the XML API's, or a proxy's that is neither.
        action: What was being done.
        key: Object key, or the store's URI.

    Returns:
        The error to raise.
    """
    code, text = _read_body(body)
    kind = CODES.get(code) or STATUSES.get(status) or (TransientError if status >= 500 else InvalidRequestError)
    cause = f"{redact(': '.join(filter(None, (code, text))))} (HTTP {status})".strip()
    hint = _CODE_HINTS.get(code) if status != 401 else None
    hint = hint or _TYPE_HINTS.get(kind)
    if 300 <= status < 400:
        hint = "the endpoint sends requests elsewhere: set endpoint_url to where it points"
    if issubclass(kind, TransientError):
        wait = headers.get("Retry-After", "")
        wait_s = float(wait) if wait.isdecimal() else None
        return kind(f"{action} failed", key=key, cause=cause, hint=hint, retry_after_s=wait_s)
    return kind(f"{action} failed", key=key, cause=cause, hint=hint)


def from_credentials(error: Exception, *, key: str | None) -> DcpCloudError:
    """Turn what finding or refreshing credentials raised into an error of this package.

    Args:
        error: An exception of ``google.auth``, or of a credentials factory.
        key: The store's URI.

    Returns:
        The error to raise.
    """
    if isinstance(error, DcpCloudError):
        return error
    names = {base.__name__ for base in type(error).__mro__ if issubclass(base, auth.GoogleAuthError)}
    message = "obtaining Google credentials failed"
    if names.intersection(_TRANSIENT_AUTH) or getattr(error, "retryable", False):
        return TransientError(message, key=key, cause=error)
    return UnauthenticatedError(message, key=key, cause=error, hint=_CREDENTIALS_HINT)


def _read_body(body: bytes) -> tuple[str, str]:
    """Find code and text in an error document of either API."""
    text = body.decode("utf-8", "replace").strip()
    try:
        if text.startswith("{"):
            return _read_json(json.loads(text))
        if text.startswith("<"):
            root = ET.fromstring(text)  # noqa: S314 - expat has limited entity expansion since 2.4
            found = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
            return found.get("Code", ""), found.get("Message", "")
    except (ValueError, TypeError, LookupError, AttributeError, ET.ParseError):
        pass  # not Google's: a proxy has documents of its own
    return "", text[:200]


def _read_json(document: Any) -> tuple[str, str]:  # noqa: ANN401 - any JSON
    error = document.get("error")
    if not isinstance(error, dict):
        return "", str(error or "")
    details = error.get("errors") or [{}]
    return str(details[0].get("reason", "")), str(error.get("message", ""))
