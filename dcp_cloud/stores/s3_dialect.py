"""Where servers that speak S3's language differ from S3, under the names of those that do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dcp_cloud.stores.base import StoreLimits

_MIB = 1024**2
_GIB = 1024**3
_TIB = 1024**4

# Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_S3_LIMITS = StoreLimits(
    min_part_bytes=5 * _MIB,
    max_part_bytes=5 * _GIB,
    max_parts=10_000,
    max_put_bytes=5 * _GIB,
    max_object_bytes=10_000 * 5 * _GIB,
)
# Sources: https://developers.cloudflare.com/r2/platform/limits/,
# https://developers.cloudflare.com/r2/objects/multipart-objects/
_R2_LIMITS = StoreLimits(
    min_part_bytes=5 * _MIB,
    max_part_bytes=5 * _GIB - 5 * _MIB,
    max_parts=10_000,
    max_put_bytes=5 * _GIB - 5 * _MIB,
    max_object_bytes=5 * _TIB - 5 * _GIB,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a server does in its own way.

    Args:
        limits: Its limits.
        lists_uploads_by_prefix: Whether a listing of unfinished uploads takes a prefix. MinIO takes it for a whole key;
            without one it tells the uploads that were begun at the node that answers, since that was started.
            Sources: https://github.com/minio/minio/issues/20989, https://github.com/minio/minio/pull/20407
        quotes_etags: Whether ``If-Match`` needs the quotes that HTTP prescribes. Amazon S3 and MinIO take both forms;
            Ceph and DigitalOcean take only the bare one, R2 only the quoted one.
        region: Its only region, if it has one.
    """

    limits: StoreLimits = _S3_LIMITS
    lists_uploads_by_prefix: bool = True
    quotes_etags: bool = False
    region: str | None = None

    def condition(self, etag: str) -> str:
        """Write the value of ``If-Match``.

        Args:
            etag: Version token, without quotes.

        Returns:
            The header's value.
        """
        return f'"{etag}"' if self.quotes_etags else etag


DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "none": Dialect(),
        # Its tokens without quotes are what all get that need nothing else; said here so that it stays so for Ceph.
        "ceph": Dialect(quotes_etags=False),
        "minio": Dialect(lists_uploads_by_prefix=False),
        "r2": Dialect(limits=_R2_LIMITS, quotes_etags=True, region="auto"),
    }
)
"""By the value of ``S3Config.compatibility``."""
