"""The one place where Azure's error codes and the SDK's exceptions become errors of this package."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import azure.core.exceptions as sdk

from dcp_cloud.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    ChecksumMismatchError,
    ConfigError,
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
    "set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, sign in where "
    "DefaultAzureCredential looks (managed identity, workload identity, az login), "
    "or add ?anonymous=true for a public container"
)
_PERMISSION_HINT = "a checkpoint needs the role Storage Blob Data Contributor, or a signature with the rights rwdl"
_ACCOUNT_HINT = "check the storage account's name (?account=…, AZURE_STORAGE_ACCOUNT or the URI's host)"

# Sources: https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes and
# https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes. Codes that are not listed are decided
# by the HTTP status.
CODES: Mapping[str, type[StoreError]] = MappingProxyType(
    {
        "BlobNotFound": NotFoundError,
        "ResourceNotFound": NotFoundError,
        "PathNotFound": NotFoundError,
        "ContainerNotFound": BucketNotFoundError,
        "ContainerBeingDeleted": BucketNotFoundError,
        "ContainerDisabled": BucketNotFoundError,
        "FilesystemNotFound": BucketNotFoundError,
        "FilesystemBeingDeleted": BucketNotFoundError,
        "BlobAlreadyExists": AlreadyExistsError,
        "ResourceAlreadyExists": AlreadyExistsError,
        "PathAlreadyExists": AlreadyExistsError,
        "ConditionNotMet": PreconditionError,
        "TargetConditionNotMet": PreconditionError,
        "BlobOverwritten": PreconditionError,
        "AuthenticationFailed": UnauthenticatedError,
        "InvalidAuthenticationInfo": UnauthenticatedError,
        "NoAuthenticationInformation": UnauthenticatedError,
        "PublicAccessNotPermitted": UnauthenticatedError,
        "AuthorizationFailure": PermissionDeniedError,
        "AuthorizationPermissionMismatch": PermissionDeniedError,
        "InsufficientAccountPermissions": PermissionDeniedError,
        "AccountIsDisabled": PermissionDeniedError,
        "KeyBasedAuthenticationNotPermitted": PermissionDeniedError,
        "BlobImmutableDueToPolicy": PermissionDeniedError,
        "ServerBusy": ThrottledError,
        "InternalError": TransientError,
        "OperationTimedOut": TransientError,
        "AccountBeingCreated": TransientError,
        "SystemInUse": TransientError,
        "Md5Mismatch": ChecksumMismatchError,
        "Crc64Mismatch": ChecksumMismatchError,
        # Refusals whose status alone would say something else. FeatureNotSupported is Azurite's.
        "FeatureNotSupported": InvalidRequestError,
        "LeaseIdMissing": InvalidRequestError,
        "LeaseLost": InvalidRequestError,
        "LeaseIdMismatchWithBlobOperation": InvalidRequestError,
        "LeaseNotPresentWithBlobOperation": InvalidRequestError,
    }
)

_STATUSES: Mapping[int, type[StoreError]] = MappingProxyType(
    {
        304: PreconditionError,
        401: UnauthenticatedError,
        403: PermissionDeniedError,
        404: NotFoundError,
        408: TransientError,
        412: PreconditionError,
        429: ThrottledError,
        501: InvalidRequestError,
        503: ThrottledError,
    }
)

_CODE_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "ContainerNotFound": "check the container's name and the account; containers are not created for you",
        "KeyBasedAuthenticationNotPermitted": "the account takes no keys: sign in where DefaultAzureCredential looks",
        "AuthenticationFailed": "check the account key, whether the shared access signature has run out, and this "
        "machine's clock",
        "AuthorizationFailure": "check the account key, whether the shared access signature has run out, and the "
        "firewall rules of the storage account",
        "LeaseIdMissing": "somebody holds a lease on the blob: break it first",
        "BlobArchived": "the blob is in the archive tier: rehydrate it first",
        "BlobBeingRehydrated": "the blob is on its way out of the archive tier: wait for it",
        "BlobUsesCustomerSpecifiedEncryption": "the blob was written with a customer key: set customer_key",
        "SnapshotsPresent": "the blob has snapshots, which are not deleted for you",
        "InvalidHeaderValue": "if the server does not know this version of the protocol, set an older one: "
        "?api_version=2021-12-02",
    }
)

_TYPE_HINTS: Mapping[type[DcpCloudError], str] = MappingProxyType(
    {UnauthenticatedError: _CREDENTIALS_HINT, PermissionDeniedError: _PERMISSION_HINT}
)

# The most specific entry on an exception's list of bases wins. For exceptions that come without an answer.
CLASSES: Mapping[type[BaseException], type[DcpCloudError]] = MappingProxyType(
    {
        sdk.ServiceRequestError: TransientError,
        sdk.ServiceResponseError: TransientError,
        sdk.HttpResponseError: TransientError,
        sdk.TooManyRedirectsError: InvalidRequestError,
        # No credential was found, a token was refused, or a key is no key.
        sdk.ClientAuthenticationError: UnauthenticatedError,
        # An answer that is no Azure answer: a proxy's page, for example.
        sdk.DeserializationError: TransientError,
        # Everything else is a request that the SDK would refuse again.
        sdk.SerializationError: InvalidRequestError,
        sdk.AzureError: InvalidRequestError,
        # What the SDK raises for URLs, connection strings and settings that it cannot use.
        ValueError: ConfigError,
    }
)


@contextmanager
def translated(action: str, *, key: str | None) -> Iterator[None]:
    """Let only this package's errors out.

    Args:
        action: What is being done.
        key: Object key, or the store's URI.
    """
    try:
        yield
    except TransientError as error:
        if _is_unknown_host(error.__cause__):
            raise InvalidRequestError(f"{action} failed", key=key, cause=error.cause, hint=_ACCOUNT_HINT) from error
        raise
    except DcpCloudError:
        raise
    except (sdk.AzureError, ValueError) as error:
        # Not chained: what a server wrote into its answer stays unread in the original, signatures included.
        raise translate(error, action=action, key=key) from None


def translate(error: BaseException, *, action: str, key: str | None) -> DcpCloudError:
    """Turn what the SDK raised into an error of this package.

    Args:
        error: The SDK's exception.
        action: What was being done.
        key: Object key, or the store's URI.

    Returns:
        The error to raise.
    """
    if isinstance(error, sdk.HttpResponseError) and error.response is not None:
        return from_answer(
            error.response.status_code or 0,
            error.response.headers,  # type: ignore[attr-defined]  # missing in the SDK's protocol, not in its classes
            action=action,
            key=key,
            message=error.message,
            default=UnauthenticatedError if isinstance(error, sdk.ClientAuthenticationError) else None,
        )
    kind = next((CLASSES[base] for base in type(error).__mro__ if base in CLASSES), InvalidRequestError)
    return kind(f"{action} failed", key=key, cause=error, hint=_TYPE_HINTS.get(kind))


def from_answer(
    status: int,
    headers: Mapping[str, str],
    *,
    action: str,
    key: str | None,
    message: str = "",
    default: type[StoreError] | None = None,
) -> StoreError:
    """Turn an error answer of the server into an error of this package.

    Args:
        status: HTTP status.
        headers: The answer's headers.
        action: What was being done.
        key: Object key, or the store's URI.
        message: The server's message.
        default: What it is when neither the code nor a passing failure's status says otherwise.

    Returns:
        The error to raise.
    """
    code = headers.get("x-ms-error-code") or ""
    kind = CODES.get(code) or _by_status(status, default)
    # Behind the first line stand the request's number, and what was signed when a signature was wrong.
    text = redact((message.splitlines() or [""])[0])
    cause = ": ".join(filter(None, (code, text))) + f" (HTTP {status}"
    cause += f", request {headers['x-ms-request-id']})" if headers.get("x-ms-request-id") else ")"
    hint = _CODE_HINTS.get(code) or _TYPE_HINTS.get(kind)
    if issubclass(kind, TransientError):
        return kind(f"{action} failed", key=key, cause=cause, hint=hint, retry_after_s=_retry_after_s(headers))
    return kind(f"{action} failed", key=key, cause=cause, hint=hint)


def error_code(error: BaseException) -> str:
    """Read the service's own name for an SDK exception; empty if it has none."""
    if not isinstance(error, sdk.HttpResponseError) or error.response is None:
        return ""
    headers: Mapping[str, str] = error.response.headers  # type: ignore[attr-defined]  # as above
    return headers.get("x-ms-error-code") or ""


def _by_status(status: int, default: type[StoreError] | None) -> type[StoreError]:
    kind = _STATUSES.get(status) or (TransientError if status >= 500 else InvalidRequestError)
    return kind if default is None or issubclass(kind, TransientError) else default


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    # The other form of Retry-After, a date, is not used by Azure.
    for name, unit_s in (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        if text.isdecimal():
            return float(text) * unit_s
    return None


def _is_unknown_host(cause: BaseException | None) -> bool:
    # A name server that is away for a moment answers EAI_AGAIN instead.
    return isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
