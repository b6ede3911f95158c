"""What a server or a file system does otherwise than the contract says: the one table of known gaps.

Each entry is applied as a strict xfail, so a gap that closes is noticed. A gap of our own store is no deviation; it is
a bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CEPH_CHECKSUM = "Ceph 16 ignores the x-amz-checksum headers"
_CEPH_COMPLETION = "Ceph 16 takes an ended upload for one that is being completed, and answers 500"
_CEPH_DELETE = "Ceph 16 ignores the condition of a delete"
_AZURE_CRC32 = "Azure verifies MD5 and CRC-64, no CRC-32"
_AZURE_BLOCKS = "Azure keeps the blocks of a key in one heap, which takes new ones at any time"
_GCS_CRC32 = "Google verifies CRC-32C, no CRC-32"

DEVIATIONS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("s3-moto", "test_a_put_with_a_wrong_checksum_is_refused"): "moto never refuses a corrupt body",
        ("s3-moto", "test_a_part_with_a_wrong_checksum_is_refused"): "moto never refuses a corrupt body",
        ("s3-moto", "test_a_part_after_the_end_is_refused"): "moto answers 500 to a part of an ended upload",
        ("s3-moto", "test_completing_an_aborted_upload_is_refused"): "moto answers 500 to an ended upload",
        ("s3-ceph", "test_completing_an_aborted_upload_is_refused"): _CEPH_COMPLETION,
        ("s3-ceph-tls", "test_completing_an_aborted_upload_is_refused"): _CEPH_COMPLETION,
        ("s3-ceph", "test_a_put_with_a_wrong_checksum_is_refused"): _CEPH_CHECKSUM,
        ("s3-ceph", "test_a_part_with_a_wrong_checksum_is_refused"): _CEPH_CHECKSUM,
        ("s3-ceph-tls", "test_a_put_with_a_wrong_checksum_is_refused"): _CEPH_CHECKSUM,
        ("s3-ceph-tls", "test_a_part_with_a_wrong_checksum_is_refused"): _CEPH_CHECKSUM,
        ("s3-ceph", "test_another_version_is_not_deleted"): _CEPH_DELETE,
        ("s3-ceph-tls", "test_another_version_is_not_deleted"): _CEPH_DELETE,
        # https://github.com/minio/minio/issues/21677; never run here.
        ("external-minio", "test_another_version_is_not_deleted"): "MinIO ignores the condition of a delete",
        ("azure-azurite", "test_a_put_with_a_wrong_checksum_is_refused"): _AZURE_CRC32,
        ("azure-azurite", "test_a_part_with_a_wrong_checksum_is_refused"): _AZURE_CRC32,
        ("azure-azurite", "test_a_part_after_the_end_is_refused"): _AZURE_BLOCKS,
        (
            "azure-azurite",
            "test_two_uploads_of_one_key_do_not_mix",
        ): "Azure drops the blocks of all other uploads of the key at a commit; theirs then fails with NotFoundError",
        (
            "azure-azurite",
            "test_a_backslash_is_no_slash",
        ): "Azure turns backslashes into slashes; the store refuses such keys",
        ("gcs-fake", "test_a_put_with_a_wrong_checksum_is_refused"): _GCS_CRC32,
        ("gcs-fake", "test_a_part_with_a_wrong_checksum_is_refused"): _GCS_CRC32,
        (
            "gcs-fake",
            "test_another_version_is_not_deleted",
        ): "fake-gcs-server ignores the condition of a delete",
        (
            "gcs-fake",
            "test_completion_replaces_the_object",
        ): "fake-gcs-server composes over an object without giving it a new generation",
        ("file", "test_an_object_may_stand_beside_objects_below_its_key"): "a file cannot be a directory too",
    }
)
"""``(store, test function)`` to the reason."""
