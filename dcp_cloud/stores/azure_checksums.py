"""Transactional checksums: sent beside the bytes, verified by the service before it stores them."""

from __future__ import annotations

import base64
import hashlib
from typing import Literal

from dcp_cloud.errors import MissingExtraError
from dcp_cloud.stores.base import Buffers


def checksum_headers(data: Buffers, kind: Literal["none", "md5", "crc64"]) -> dict[str, str]:
    """Compute the header with which the service verifies a body.

    Args:
        data: The body.
        kind: Which checksum.

    Returns:
        The header, or nothing.

    Raises:
        MissingExtraError: ``crc64`` without the package that computes it.
    """
    if kind == "md5":
        digest = hashlib.md5(usedforsecurity=False)
        for buffer in data:
            digest.update(buffer)
        return {"Content-MD5": base64.b64encode(digest.digest()).decode()}
    if kind == "crc64":
        return {"x-ms-content-crc64": base64.b64encode(_crc64(data).to_bytes(8, "little")).decode()}
    return {}


def _crc64(data: Buffers) -> int:
    # Azure's polynomial is that of CRC-64/NVME. Of the two packages that compute it, Microsoft's own takes only
    # bytes objects, so that every part would be copied, and is ten times slower.
    try:
        from awscrt.checksums import crc64nvme  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "checksums='crc64' needs the package 'awscrt'", hint="install it: pip install awscrt"
        ) from error
    crc = 0
    for buffer in data:
        crc = crc64nvme(buffer, crc)
    return crc
