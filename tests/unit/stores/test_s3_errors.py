"""S3's codes and botocore's exceptions: all of them have a place in our tree."""

from __future__ import annotations

import inspect
import pickle

import botocore.exceptions as sdk
import pytest
from boto3.exceptions import Boto3Error

from dcp_cloud.errors import (
    BucketNotFoundError,
    ChecksumMismatchError,
    ConfigError,
    DcpCloudError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
    WrongRegionError,
)
from dcp_cloud.stores.s3_errors import CLASSES, CODES, from_answer, translate

_SDK_ERRORS = [
    member
    for _, member in inspect.getmembers(sdk, inspect.isclass)
    if member.__module__ == sdk.__name__ and issubclass(member, Exception) and not issubclass(member, Warning)
]

# What the SDK raises for calls that it was given wrongly, for other services, or in its own tests. They cannot come
# from the calls made here; if one did, the request would be refused again.
_REFUSED = {
    *("AliasConflictParameterError", "ApiVersionNotFoundError", "AwsChunkedWrapperError", "BotoCoreError"),
    *("CapacityNotAvailableError", "DataNotFoundError", "InvalidEndpointDiscoveryConfigurationError"),
    *("InvalidExpressionError", "MD5UnavailableError", "MissingParametersError", "MissingServiceIdError"),
    *("OperationNotPageableError", "PaginationError", "ParamValidationError", "RangeError", "StubAssertionError"),
    *("StubResponseError", "UnStubbedResponseError", "UndefinedModelAttributeError", "UnknownClientMethodError"),
    *("UnknownKeyError", "UnknownParameterError", "UnknownServiceError", "UnknownServiceStyle"),
    *("UnseekableStreamError", "UnsupportedServiceProtocolsError", "ValidationError", "WaiterConfigError"),
    "WaiterError",
}


@pytest.mark.parametrize("error_type", _SDK_ERRORS, ids=lambda error_type: error_type.__name__)
def test_every_exception_of_the_sdk_has_its_place(error_type: type[Exception]):
    """An exception that a new botocore brings is either mapped by its family or shows up here."""
    if issubclass(error_type, sdk.ClientError):
        return
    placed = [base for base in error_type.__mro__ if base in CLASSES and base is not sdk.BotoCoreError]
    assert bool(placed) != (error_type.__name__ in _REFUSED)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sdk.EndpointConnectionError(endpoint_url="http://x"), TransientError),
        (sdk.ConnectTimeoutError(endpoint_url="http://x"), TransientError),
        (sdk.ReadTimeoutError(endpoint_url="http://x"), TransientError),
        (sdk.ConnectionClosedError(endpoint_url="http://x"), TransientError),
        (sdk.ProxyConnectionError(proxy_url="http://x"), TransientError),
        (sdk.MetadataRetrievalError(error_msg="x"), TransientError),
        (sdk.ResponseStreamingError(error="x"), TransientError),
        (sdk.FlexibleChecksumError(error_msg="x"), ChecksumMismatchError),
        (sdk.NoCredentialsError(), UnauthenticatedError),
        (sdk.PartialCredentialsError(provider="p", cred_var="v"), UnauthenticatedError),
        (sdk.CredentialRetrievalError(provider="p", error_msg="x"), UnauthenticatedError),
        (sdk.SSOTokenLoadError(error_msg="x"), UnauthenticatedError),
        (sdk.ProfileNotFound(profile="p"), ConfigError),
        (sdk.NoRegionError(), ConfigError),
        (sdk.InvalidRegionError(region_name="a b"), ConfigError),
        (sdk.ParamValidationError(report="x"), InvalidRequestError),
        (Boto3Error("x"), ConfigError),
        (ValueError("Invalid endpoint: http://"), ConfigError),
        (LookupError("x"), InvalidRequestError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_exceptions_of_the_sdk_become_ours(error: Exception, expected: type[DcpCloudError]):
    """The most specific family decides, and the error says what was done and to what."""
    ours = translate(error, action="put_object on s3://b", key="k")
    assert type(ours) is expected
    assert (ours.key, ours.message) == ("k", "put_object on s3://b failed")
    assert type(pickle.loads(pickle.dumps(ours))) is expected


def _answer(code: str, status: int, **headers: str) -> dict[str, object]:
    return {
        "Error": {"Code": code, "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }


@pytest.mark.parametrize("code", CODES)
def test_a_code_wins_over_its_status(code: str):
    """A known code decides, whatever status it comes with."""
    assert type(from_answer(_answer(code, 418), action="x", key=None)) is CODES[code]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (301, WrongRegionError),
        (400, InvalidRequestError),
        (401, UnauthenticatedError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, InvalidRequestError),
        (408, TransientError),
        (409, TransientError),
        (411, InvalidRequestError),
        (412, PreconditionError),
        (416, InvalidRequestError),
        (429, ThrottledError),
        (500, TransientError),
        (501, InvalidRequestError),
        (502, TransientError),
        (503, ThrottledError),
        (504, TransientError),
    ],
)
def test_an_unknown_code_is_decided_by_its_status(status: int, expected: type[DcpCloudError]):
    """HEAD answers have no code but the status, and compatible servers invent some."""
    assert type(from_answer(_answer(str(status), status), action="x", key=None)) is expected


def test_the_cause_names_code_message_and_status():
    """What the server said stands in the message."""
    error = from_answer(_answer("NoSuchBucket", 404), action="x", key="k")
    assert type(error) is BucketNotFoundError
    assert error.cause == "NoSuchBucket: why (HTTP 404)"


@pytest.mark.parametrize(
    ("code", "status", "expected", "hint"),
    [
        ("KMS.NotFoundException", 400, InvalidRequestError, "kms_key_id"),
        ("KMS.DisabledException", 400, InvalidRequestError, "kms_key_id"),
        ("KMS.SomethingNewException", 400, InvalidRequestError, "kms_key_id"),
        ("KMS.AccessDeniedException", 403, PermissionDeniedError, "kms:GenerateDataKey"),
        ("KMS.ThrottlingException", 400, ThrottledError, "kms_key_id"),
        ("KMS.KeyUnavailableException", 500, TransientError, "kms_key_id"),
        ("InvalidObjectState", 403, InvalidRequestError, "restore"),
        ("RequestTimeTooSkewed", 403, UnauthenticatedError, "clock"),
        ("ExpiredToken", 400, UnauthenticatedError, "refresh"),
        ("NoSuchAccessPoint", 404, BucketNotFoundError, "access_point"),
    ],
)
def test_the_next_step_is_named(code: str, status: int, expected: type[DcpCloudError], hint: str):
    """Keys, archives, clocks and access points: each has its own way out, which the error tells."""
    error = from_answer(_answer(code, status), action="x", key=None)
    assert type(error) is expected
    assert hint in (error.hint or "")


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None)])
def test_retry_after_is_carried(text: str, seconds: float | None):
    """The wait that the server asks for reaches the retry layer."""
    error = from_answer(_answer("SlowDown", 503, **{"retry-after": text}), action="x", key=None)
    assert isinstance(error, ThrottledError)
    assert error.retry_after_s == seconds


@pytest.mark.parametrize("code", ["AuthorizationHeaderMalformed", "PermanentRedirect", "301"])
def test_a_wrong_region_is_named(code: str):
    """The hint names the bucket's region when the server told it."""
    answer = _answer(code, 301, **{"x-amz-bucket-region": "eu-west-1"})
    error = from_answer(answer, action="x", key=None)
    assert isinstance(error, WrongRegionError)
    assert "eu-west-1" in (error.hint or "")


def test_secrets_in_a_message_are_cut():
    """A server that repeats a signature does not bring it into our logs."""
    answer = _answer("AccessDenied", 403)
    answer["Error"] = {"Code": "AccessDenied", "Message": "bad X-Amz-Signature=abcdef0123"}
    assert "abcdef0123" not in str(from_answer(answer, action="x", key=None))
