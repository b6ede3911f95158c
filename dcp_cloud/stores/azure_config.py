"""Settings of the Azure store. No SDK is needed to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from dcp_cloud.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureConfig:
    """How to reach a container in Azure Blob Storage or in Azurite.

    Credentials are found in this order: ``credential_factory``, ``AZURE_STORAGE_CONNECTION_STRING``, an account key
    in ``AZURE_STORAGE_KEY``, a shared access signature in ``AZURE_STORAGE_SAS_TOKEN``, ``DefaultAzureCredential``
    (workload identity, managed identity, ``az login`` …). Those of the environment are passed over when they belong
    to another account than the one that is asked for.

    Args:
        account: Storage account; left out, it comes from the URI, ``AZURE_STORAGE_ACCOUNT`` or the connection string.
        account_url: URL of the account's blob service, for Azurite, sovereign clouds and private endpoints. An
            account that stands in the path (Azurite) belongs to it: ``http://127.0.0.1:10000/devstoreaccount1``.
        anonymous: Do not authenticate: for public containers.
        api_version: Version of the service's protocol instead of the SDK's newest; older servers need it.
        checksums: Transactional checksum that the service verifies for each upload: ``md5`` costs 1.4 CPU seconds
            per GiB, ``crc64`` almost nothing but needs the package ``awscrt``. Without one, TLS protects the bytes
            on their way and the checkpoint's own CRC-32 protects them end to end.
        access_tier: Tier of new blobs instead of the account's default.
        encryption_scope: Encryption scope of new blobs.
        verify_tls: Whether to check the server's certificate.
        ca_bundle: File of CA certificates to trust instead of the system's.
        connect_timeout_s: Time for TCP connect and TLS handshake, seconds.
        read_timeout_s: Longest time without progress while sending or receiving, seconds.
        max_pool_connections: Connections kept open for reuse.
        tags: Index tags of new blobs. Argument only.
        metadata: Metadata of new blobs. Argument only.
        customer_key: Gives the 32-byte AES key with which the service encrypts and decrypts (a customer-provided
            key); a picklable function, so that no settings ever hold the key. Argument only.
        credential_factory: Makes the credential: anything that the SDK's ``credential=`` takes; a picklable
            function. Argument only.
    """

    account: str | None = None
    account_url: str | None = None
    anonymous: bool = False
    api_version: str | None = None
    checksums: Literal["none", "md5", "crc64"] = "none"
    access_tier: Literal["Hot", "Cool", "Cold"] | None = None
    encryption_scope: str | None = None
    verify_tls: bool = True
    ca_bundle: str | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    max_pool_connections: int = 64
    tags: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    metadata: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    customer_key: Callable[[], bytes] | None = field(default=None, metadata={"argument_only": True})
    credential_factory: Callable[[], Any] | None = field(default=None, metadata={"argument_only": True})

    def __post_init__(self) -> None:
        if self.account_url is not None:
            _check_url(self.account_url)
        if self.anonymous and self.credential_factory is not None:
            raise ConfigError("anonymous and credential_factory exclude each other", hint="leave one of them out")
        if self.customer_key is not None and self.encryption_scope is not None:
            raise ConfigError("customer_key and encryption_scope exclude each other", hint="leave one of them out")
        for name in ("connect_timeout_s", "read_timeout_s", "max_pool_connections"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} is out of range", hint="it must be above 0")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    # A shared access signature stands in the query; the text of a URL that has one must not be repeated.
    shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
    if parts.query or parts.username is not None:
        raise ConfigError(
            "account_url would put a secret into the settings",
            key=shown,
            hint="write the URL only, and put the shared access signature into AZURE_STORAGE_SAS_TOKEN",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"account_url={shown!r} is no URL", hint="write https://account.blob.core.windows.net or Azurite's URL"
        )
