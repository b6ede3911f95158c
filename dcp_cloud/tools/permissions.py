"""The permission that each kind of request needs, by provider: what to grant when one is refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dcp_cloud.errors import DcpCloudError, PermissionDeniedError, UnauthenticatedError

# Sources: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html,
# https://docs.cloud.google.com/storage/docs/access-control/iam-permissions,
# https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory
_PERMISSIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "s3": {
            "list": "s3:ListBucket on the bucket",
            "put": "s3:PutObject on the objects",
            "commit": "s3:PutObject and s3:GetObject on the objects",
            "get": "s3:GetObject on the objects",
            "upload": "s3:PutObject on the objects",
            "find": "s3:ListBucketMultipartUploads on the bucket",
            "abort": "s3:AbortMultipartUpload on the objects",
            "region": "s3:ListBucket on the bucket",
            "delete": "s3:DeleteObject on the objects",
        },
        "gs": {
            "list": "storage.objects.list (Storage Object Viewer)",
            "put": "storage.objects.create (Storage Object User)",
            "commit": "storage.objects.create, .get and .delete (Storage Object User)",
            "get": "storage.objects.get (Storage Object Viewer)",
            "upload": "storage.multipartUploads.create and storage.objects.create (Storage Object User)",
            "find": "storage.multipartUploads.list (Storage Object User)",
            "abort": "storage.multipartUploads.abort (Storage Object User)",
            "delete": "storage.objects.delete (Storage Object User)",
        },
        "az": {
            "list": "Storage Blob Data Reader on the container; in a shared access signature: l",
            "put": "Storage Blob Data Contributor on the container; in a shared access signature: c, w",
            "commit": "Storage Blob Data Contributor on the container; in a shared access signature: c, r, w",
            "get": "Storage Blob Data Reader on the container; in a shared access signature: r",
            "upload": "Storage Blob Data Contributor on the container; in a shared access signature: c, r, w",
            "find": "Storage Blob Data Contributor on the container; in a shared access signature: l, r, w",
            "abort": "Storage Blob Data Contributor on the container; in a shared access signature: c, d, r, w",
            "delete": "Storage Blob Data Contributor on the container; in a shared access signature: d",
        },
    }
)


def permission_for(scheme: str, verb: str, error: DcpCloudError) -> str:
    """Say what to grant.

    Args:
        scheme: Scheme of the store.
        verb: What was tried: the request that was refused, which may be but a part of a check.
        error: What it was answered.

    Returns:
        The fix, or nothing if the error was no refusal of a permission.
    """
    if not isinstance(error, PermissionDeniedError) or isinstance(error, UnauthenticatedError):
        return ""
    permission = _PERMISSIONS.get(scheme, {}).get(verb)
    return f"grant {permission}" if permission else ""
