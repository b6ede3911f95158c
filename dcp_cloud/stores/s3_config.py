"""Settings of the S3 store. No SDK is needed to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dcp_cloud.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """How to reach a bucket on S3 or on a compatible server.

    What is left out comes from the SDK's own chain: environment, profile, workload identity, instance role.
    Credentials always come from there.

    Args:
        region: Region to sign for.
        endpoint_url: URL of a compatible server.
        profile: Profile of the AWS configuration files.
        addressing_style: Whether the bucket stands in the path or in the host name. ``auto``: in the path for a
            custom endpoint, in the host name otherwise.
        checksums: ``when_supported`` sends a CRC-32 with every object and part, which S3 verifies and stores;
            ``when_required`` sends none, for servers that refuse the newer checksum headers.
        anonymous: Do not sign: for public buckets.
        verify_tls: Whether to check the server's certificate.
        ca_bundle: File of CA certificates to trust instead of the SDK's.
        connect_timeout_s: Time for TCP connect and TLS handshake, seconds.
        read_timeout_s: Longest time without progress while sending or receiving, seconds.
        max_pool_connections: Connections kept open for reuse.
        session_factory: Makes the ``boto3.session.Session`` to use; a picklable function. For credentials that no
            chain finds. Argument only.
    """

    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    addressing_style: Literal["auto", "virtual", "path"] = "auto"
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    anonymous: bool = False
    verify_tls: bool = True
    ca_bundle: str | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    max_pool_connections: int = 64
    session_factory: Callable[[], Any] | None = field(default=None, metadata={"argument_only": True})

    def __post_init__(self) -> None:
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"endpoint_url={self.endpoint_url!r} is no URL", hint="write http://host:port or https://host:port"
            )
        if self.session_factory is not None and self.profile is not None:
            raise ConfigError("session_factory and profile exclude each other", hint="name the profile in the session")
        for name in ("connect_timeout_s", "read_timeout_s", "max_pool_connections"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} is out of range", hint="it must be above 0")
