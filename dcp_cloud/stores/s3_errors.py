"""The one place where S3's error codes and botocore's exceptions become errors of this package."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import botocore.exceptions as sdk
from boto3.exceptions import Boto3Error

from dcp_cloud.errors import (
    BucketNotFoundError,
    ChecksumMismatchError,
    ConfigError,
    DcpCloudError,
    InvalidRequestError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
    WrongRegionError,
    redact,
)

_CREDENTIALS_HINT = (
    "configure credentials where the AWS SDK finds them (AWS_PROFILE, AWS_ACCESS_KEY_ID, an instance or pod role), "
    "or add ?anonymous=true for a public bucket"
)
_PERMISSION_HINT = (
    "a checkpoint needs s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload, "
    "s3:ListBucket and s3:ListBucketMultipartUploads"
)
_KMS_HINT = (
    "check the key in kms_key_id, or the bucket's: it must be enabled, in the bucket's region, and its policy must "
    "allow you kms:GenerateDataKey and kms:Decrypt"
)
_EXPIRED_HINT = "set this machine's clock: by it, the credentials had run out when they arrived"
_REGION_HINT = "set the bucket's region with ?region=… or AWS_REGION"

# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html. Codes that are not listed are decided
# by the HTTP status.
CODES: Mapping[str, type[StoreError]] = MappingProxyType(
    {
        "NoSuchBucket": BucketNotFoundError,
        "NoSuchKey": NotFoundError,
        "NoSuchUpload": NotFoundError,
        "NoSuchVersion": NotFoundError,
        "NoSuchAccessPoint": BucketNotFoundError,
        "AccessDenied": PermissionDeniedError,
        "AllAccessDisabled": PermissionDeniedError,
        "AccountProblem": PermissionDeniedError,
        "InvalidAccessKeyId": UnauthenticatedError,
        "SignatureDoesNotMatch": UnauthenticatedError,
        "ExpiredToken": UnauthenticatedError,
        "InvalidToken": UnauthenticatedError,
        "TokenRefreshRequired": UnauthenticatedError,
        "RequestExpired": UnauthenticatedError,
        "RequestTimeTooSkewed": UnauthenticatedError,
        "InvalidSecurity": UnauthenticatedError,
        "NotSignedUp": UnauthenticatedError,
        # What STS says when the SDK exchanges a pod's or a user's token for credentials. Source:
        # https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
        "ExpiredTokenException": UnauthenticatedError,
        "InvalidIdentityToken": UnauthenticatedError,
        "IDPRejectedClaim": UnauthenticatedError,
        "IDPCommunicationError": TransientError,
        "PermanentRedirect": WrongRegionError,
        "AuthorizationHeaderMalformed": WrongRegionError,
        "IllegalLocationConstraintException": WrongRegionError,
        # A new bucket's name has not spread yet.
        "TemporaryRedirect": TransientError,
        "SlowDown": ThrottledError,
        "ServiceUnavailable": ThrottledError,
        "Throttling": ThrottledError,
        "ThrottlingException": ThrottledError,
        "RequestLimitExceeded": ThrottledError,
        "BandwidthLimitExceeded": ThrottledError,
        "TooManyRequests": ThrottledError,
        "InternalError": TransientError,
        "RequestTimeout": TransientError,
        "IncompleteBody": TransientError,
        "OperationAborted": TransientError,
        # Another conditional request for the key was under way: whoever asks again learns who won.
        "ConditionalRequestConflict": TransientError,
        "BadDigest": ChecksumMismatchError,
        "InvalidDigest": ChecksumMismatchError,
        "XAmzContentChecksumMismatch": ChecksumMismatchError,
        "XAmzContentSHA256Mismatch": ChecksumMismatchError,
        "PreconditionFailed": PreconditionError,
        # What KMS said to S3. Source: https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html and the
        # errors of GenerateDataKey and Decrypt there.
        "KMS.AccessDeniedException": PermissionDeniedError,
        "KMS.DisabledException": InvalidRequestError,
        "KMS.InvalidGrantTokenException": InvalidRequestError,
        "KMS.InvalidKeyUsageException": InvalidRequestError,
        "KMS.InvalidStateException": InvalidRequestError,
        "KMS.KMSInvalidStateException": InvalidRequestError,
        "KMS.NotFoundException": InvalidRequestError,
        "KMS.DependencyTimeoutException": TransientError,
        "KMS.KeyUnavailableException": TransientError,
        "KMS.KMSInternalException": TransientError,
        "KMS.LimitExceededException": ThrottledError,
        "KMS.ThrottlingException": ThrottledError,
        # Refusals whose status alone would say something else.
        "InvalidObjectState": InvalidRequestError,
        "QuotaExceeded": InvalidRequestError,
        "NotImplemented": InvalidRequestError,
        "InvalidRange": OutOfRangeError,
    }
)

_STATUSES: Mapping[int, type[StoreError]] = MappingProxyType(
    {
        301: WrongRegionError,
        307: TransientError,
        401: UnauthenticatedError,
        403: PermissionDeniedError,
        404: NotFoundError,
        408: TransientError,
        409: TransientError,
        412: PreconditionError,
        429: ThrottledError,
        501: InvalidRequestError,
        503: ThrottledError,
    }
)

_CODE_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "NoSuchBucket": "check the bucket's name, the endpoint and the account; buckets are not created for you",
        "RequestTimeTooSkewed": "set this machine's clock",
        "ExpiredToken": "the session's credentials ran out: use ones that the SDK can refresh",
        "NoSuchAccessPoint": "check access_point: its name, its region and its account",
        "InvalidObjectState": "the object is archived: restore it first (aws s3api restore-object)",
        "EntityTooLarge": "raise part_size, so that the object goes up in parts",
    }
)

_TYPE_HINTS: Mapping[type[DcpCloudError], str] = MappingProxyType(
    {
        UnauthenticatedError: _CREDENTIALS_HINT,
        PermissionDeniedError: _PERMISSION_HINT,
        WrongRegionError: _REGION_HINT,
    }
)

# The most specific entry on an exception's list of bases wins.
CLASSES: Mapping[type[BaseException], type[DcpCloudError]] = MappingProxyType(
    {
        # The connection, or an answer that broke off.
        sdk.HTTPClientError: TransientError,
        sdk.ConnectionError: TransientError,
        sdk.IncompleteReadError: TransientError,
        sdk.ChecksumError: ChecksumMismatchError,
        sdk.FlexibleChecksumError: ChecksumMismatchError,
        # Finding credentials. A metadata service may be busy; the rest needs the user.
        sdk.MetadataRetrievalError: TransientError,
        sdk.CredentialRetrievalError: UnauthenticatedError,
        sdk.NoCredentialsError: UnauthenticatedError,
        sdk.PartialCredentialsError: UnauthenticatedError,
        sdk.UnknownCredentialError: UnauthenticatedError,
        sdk.RefreshWithMFAUnsupportedError: UnauthenticatedError,
        sdk.NoAuthTokenError: UnauthenticatedError,
        sdk.TokenRetrievalError: UnauthenticatedError,
        sdk.UnknownTokenProviderError: UnauthenticatedError,
        sdk.SSOError: UnauthenticatedError,
        sdk.LoginError: UnauthenticatedError,
        # The SDK's configuration.
        sdk.ProfileNotFound: ConfigError,
        sdk.ConfigNotFound: ConfigError,
        sdk.ConfigParseError: ConfigError,
        sdk.InvalidConfigError: ConfigError,
        sdk.InvalidChecksumConfigError: ConfigError,
        sdk.InvalidDefaultsMode: ConfigError,
        sdk.InvalidEndpointConfigurationError: ConfigError,
        sdk.InvalidIMDSEndpointError: ConfigError,
        sdk.InvalidIMDSEndpointModeError: ConfigError,
        sdk.InvalidProxiesConfigError: ConfigError,
        sdk.InvalidRetryConfigurationError: ConfigError,
        sdk.InvalidS3AddressingStyleError: ConfigError,
        sdk.InvalidS3UsEast1RegionalEndpointConfigError: ConfigError,
        sdk.InvalidSTSRegionalEndpointsConfigError: ConfigError,
        sdk.BaseEndpointResolverError: ConfigError,
        sdk.EndpointProviderError: ConfigError,
        sdk.UnknownRegionError: ConfigError,
        sdk.InvalidRegionError: ConfigError,
        sdk.ServiceNotInRegionError: ConfigError,
        sdk.UnsupportedS3AccesspointConfigurationError: ConfigError,
        sdk.UnsupportedS3ConfigurationError: ConfigError,
        sdk.UnsupportedS3ControlConfigurationError: ConfigError,
        sdk.UnsupportedS3ArnError: ConfigError,
        sdk.UnsupportedS3ControlArnError: ConfigError,
        sdk.UnsupportedOutpostResourceError: ConfigError,
        sdk.UnknownSignatureVersionError: ConfigError,
        sdk.UnsupportedSignatureVersionError: ConfigError,
        sdk.MissingDependencyException: ConfigError,
        sdk.InvalidDNSNameError: ConfigError,
        sdk.InvalidHostLabelError: ConfigError,
        # Everything else is a request that the SDK would refuse again.
        sdk.BotoCoreError: InvalidRequestError,
        Boto3Error: ConfigError,
        # What botocore raises for an endpoint or a region that is no host name.
        ValueError: ConfigError,
    }
)


def translate(error: BaseException, *, action: str, key: str | None) -> DcpCloudError:
    """Turn what the SDK raised into an error of this package.

    Args:
        error: The SDK's exception.
        action: What was being done.
        key: Object key, or the store's URI.

    Returns:
        The error to raise.
    """
    if isinstance(error, sdk.ClientError):
        return from_answer(error.response, action=action, key=key)
    if type(error) is RuntimeError:
        # botocore has no class for new credentials that have run out already (RefreshableCredentials).
        return UnauthenticatedError(f"{action} failed", key=key, cause=error, hint=_EXPIRED_HINT)
    kind = next((CLASSES[base] for base in type(error).__mro__ if base in CLASSES), InvalidRequestError)
    if isinstance(error, sdk.SSLError) and _is_certificate_error(error):
        return InvalidRequestError(
            f"{action} failed",
            key=key,
            cause=error,
            hint="name the CA that signed the server's certificate with ca_bundle=…",
        )
    return kind(f"{action} failed", key=key, cause=error, hint=_TYPE_HINTS.get(kind))


def from_answer(answer: Mapping[str, Any], *, action: str, key: str | None) -> StoreError:
    """Turn an error answer of the server into an error of this package.

    Args:
        answer: ``ClientError.response``, or a record of the same shape.
        action: What was being done.
        key: Object key, or the store's URI.

    Returns:
        The error to raise.
    """
    details = answer.get("Error", {})
    metadata = answer.get("ResponseMetadata", {})
    code, status = str(details.get("Code", "")), int(metadata.get("HTTPStatusCode", 0))
    headers = metadata.get("HTTPHeaders", {})
    kind = CODES.get(code) or _STATUSES.get(status) or (TransientError if status >= 500 else InvalidRequestError)
    cause = redact(": ".join(filter(None, (code, details.get("Message")))))
    if status:
        cause += f" (HTTP {status})"
    hint = _CODE_HINTS.get(code) or (_KMS_HINT if code.startswith("KMS.") else _TYPE_HINTS.get(kind))
    region = details.get("Region") or headers.get("x-amz-bucket-region")
    if kind is WrongRegionError and region:
        hint = f"the bucket is in {region}: use ?region={region}"
    if issubclass(kind, TransientError):
        wait_s = _seconds(headers.get("retry-after"))
        return kind(f"{action} failed", key=key, cause=cause, hint=hint, retry_after_s=wait_s)
    return kind(f"{action} failed", key=key, cause=cause, hint=hint)


def _seconds(text: str | None) -> float | None:
    # The other form of Retry-After, a date, is used by no S3 server that is known.
    return float(text) if text is not None and text.isdecimal() else None


def _is_certificate_error(error: sdk.SSLError) -> bool:
    inner: object = error.kwargs.get("error")
    while isinstance(inner, BaseException):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return True
        inner = inner.args[0] if inner.args else None
    return False
