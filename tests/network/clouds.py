"""The three clouds as their clients' requests look: which requests carry a part, complete an object, commit, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dcp_cloud.testing import NetworkFault

_MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Patterns for the requests of one provider.

    Args:
        server: Name of the server that stands for it.
        part: A request with bytes of a data object.
        complete: The request that makes a data object visible.
        commit: The request that writes ``.metadata``.
        read: A request that reads bytes of a data object.
        read_commit: The request that reads ``.metadata``.
        numel: Float32 values of the tensor to save: three parts of it.
        options: Options of the URI.
        expired: What the provider answers when credentials have run out.
    """

    server: str
    part: Mapping[str, Any]
    complete: Mapping[str, Any]
    commit: Mapping[str, Any]
    read: Mapping[str, Any]
    read_commit: Mapping[str, Any]
    numel: int
    options: Mapping[str, str]
    expired: Mapping[str, Any] = field(default_factory=dict)


S3 = Cloud(
    server="ceph",
    part={"method": "PUT", "query": {"partNumber": "*"}},
    complete={"method": "POST", "query": {"uploadId": "*"}},
    commit={"method": "PUT", "path": "*/.metadata"},
    read={"method": "GET", "path": "*.distcp"},
    read_commit={"method": "GET", "path": "*/.metadata"},
    numel=11 * _MIB // 4,
    options={"part_size": "5MiB"},
    expired={"status": 400, "code": "ExpiredToken"},
)
# Of Google's and Azure's uploads the first is the mark of an unfinished object.
GCS = Cloud(
    server="fake-gcs",
    part={"method": "POST", "path": "/upload/*", "query": {"ifGenerationMatch": None}, "nth": 2},
    complete={"method": "POST", "path": "*/compose"},
    commit={"method": "POST", "path": "/upload/*", "query": {"ifGenerationMatch": "*"}},
    read={"method": "GET", "path": "/download/*.distcp"},
    read_commit={"method": "GET", "path": "/download/*/.metadata"},
    numel=_MIB // 4,
    options={"part_size": "384KiB"},
    expired={"status": 401, "code": "authError"},
)
AZURE = Cloud(
    server="azurite",
    part={"method": "PUT", "query": {"comp": "block"}, "nth": 2},
    complete={"method": "PUT", "query": {"comp": "blocklist"}},
    commit={"method": "PUT", "path": "*/.metadata"},
    read={"method": "GET", "path": "*.distcp"},
    read_commit={"method": "GET", "path": "*/.metadata"},
    numel=_MIB // 4,
    options={"part_size": "384KiB"},
    expired={"status": 403, "code": "AuthenticationFailed"},
)
CLOUDS = {"s3": S3, "gcs": GCS, "azure": AZURE}


def fault(kind: Any, where: Mapping[str, Any], **settings: Any) -> NetworkFault:
    """Write a fault for the requests of a pattern."""
    return NetworkFault(kind, **{**where, **settings})
