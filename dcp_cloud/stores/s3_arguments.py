"""What the settings add to requests: which operation takes which argument stands here, and only here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.customer_key import read_customer_key
from dcp_cloud.stores.s3_config import S3Config

# Directory buckets (S3 Express One Zone) and their access points are told by their names.
# Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/directory-bucket-naming-rules.html
_DIRECTORY_BUCKETS = ("--x-s3", "--xa-s3")
_NEW_OBJECTS = frozenset({"put_object", "create_multipart_upload"})
_COPIES = ("ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled", "StorageClass", "ACL")
# An upload with checksums cannot be completed without the key: S3 encrypts the parts' checksums too.
_CUSTOMER_KEY = frozenset(
    {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload", "get_object", "head_object"}
)


class RequestArguments:
    """The arguments that settings add to the SDK's operations. Holds the customer's key: never pickled, never shown.

    Args:
        config: The settings.
    """

    def __init__(self, config: S3Config) -> None:
        self._everywhere = _present(
            {
                "RequestPayer": "requester" if config.requester_pays else None,
                "ExpectedBucketOwner": config.expected_bucket_owner,
            }
        )
        self._new_objects = _present(
            {
                "ServerSideEncryption": config.encryption,
                "SSEKMSKeyId": config.kms_key_id,
                "BucketKeyEnabled": config.bucket_key,
                "StorageClass": config.storage_class,
                "ACL": "bucket-owner-full-control" if config.bucket_owner_full_control else None,
                "Tagging": urlencode(config.tags, quote_via=quote) or None,
                "Metadata": dict(config.metadata) or None,
            }
        )
        # The SDK makes the Base64 form and the MD5 that go with it.
        self._customer_key = (
            {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": read_customer_key(config.customer_key)}
            if config.customer_key is not None
            else {}
        )

    def of(self, operation: str) -> dict[str, Any]:
        """Give what an operation needs.

        Args:
            operation: Method of the SDK's client.

        Returns:
            Arguments of that method.
        """
        arguments = dict(self._everywhere)
        if operation in _NEW_OBJECTS:
            arguments |= self._new_objects
        if operation == "copy_object":  # tags and metadata come along from the source
            arguments |= {name: self._new_objects[name] for name in _COPIES if name in self._new_objects}
        if operation in _CUSTOMER_KEY:
            arguments |= self._customer_key
        return arguments


def check_directory_bucket(bucket: str, config: S3Config) -> None:
    """Refuse settings that a directory bucket does not have.

    Args:
        bucket: Name of the bucket.
        config: The settings.

    Raises:
        ConfigError: The bucket is a directory bucket, and a setting does not work there.
    """
    if not (config.access_point or bucket).endswith(_DIRECTORY_BUCKETS):
        return
    # Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, which says it of each.
    impossible = {
        "tags": bool(config.tags),
        "requester_pays": config.requester_pays,
        "customer_key": config.customer_key is not None,
        "bucket_owner_full_control": config.bucket_owner_full_control,
        "accelerate": config.accelerate,
        "anonymous": config.anonymous,
    }
    names = [name for name, is_set in impossible.items() if is_set]
    if names:
        raise ConfigError(
            f"a directory bucket has no {', '.join(names)}", key=f"s3://{bucket}", hint="leave these settings out"
        )


def _present(arguments: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
