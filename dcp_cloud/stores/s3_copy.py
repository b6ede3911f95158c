"""Copies within S3: one request for an object of up to 5 GiB, one for each part of a longer one."""

from __future__ import annotations

import logging
from typing import Any

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.stores.s3_client import S3Client
from dcp_cloud.stores.server_side import Repeat

logger = logging.getLogger(__name__)

# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
_MAX_COPY_BYTES = 5 * 1024**3
# 10,000 parts of this are the 5 TiB that an object has at most.
_PART_BYTES = 1024**3


def can_copy(source: S3Client, target: S3Client) -> bool:
    """Tell whether a bucket's client can ask for copies out of another's.

    Args:
        source: Client of the bucket with the object.
        target: Client of the bucket to copy to.

    Returns:
        True if both speak to one service in one way, and no customer's key or access point complicates it.
    """
    return source.config == target.config and target.config.customer_key is None and target.config.access_point is None


def copy_object(source: S3Client, target: S3Client, meta: ObjectMeta, key: str, repeat: Repeat) -> None:
    """Copy an object.

    Args:
        source: Client of the bucket that it is in.
        target: Client of the bucket to copy to.
        meta: The object.
        key: Key of the copy.
        repeat: Runs each request.
    """
    origin: dict[str, Any] = {
        "CopySource": {"Bucket": source.bucket, "Key": meta.key},
        "CopySourceIfMatch": f'"{meta.etag}"',
    }
    if meta.size_bytes <= _MAX_COPY_BYTES:
        repeat(lambda: target.call("copy_object", subject=meta.key, Key=key, **origin))
        return
    upload_id = repeat(lambda: target.call("create_multipart_upload", subject=key, Key=key)["UploadId"])
    upload = {"subject": key, "Key": key, "UploadId": upload_id}

    def copy_part(number: int, start: int) -> dict[str, Any]:
        extent = f"bytes={start}-{min(start + _PART_BYTES, meta.size_bytes) - 1}"
        answer = target.call("upload_part_copy", **upload, PartNumber=number, CopySourceRange=extent, **origin)
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    try:
        parts = [
            repeat(lambda number=number, start=start: copy_part(number, start))  # type: ignore[misc]
            for number, start in enumerate(range(0, meta.size_bytes, _PART_BYTES), start=1)
        ]
        repeat(lambda: target.call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts}))
    except BaseException:  # a Ctrl-C too leaves no upload behind
        try:
            target.call("abort_multipart_upload", **upload)
        except DcpCloudError as error:  # it must not hide what went wrong before
            logger.warning("could not abort the copy of %s; 'dcp-cloud sweep' will: %s", meta.key, error)
        raise
