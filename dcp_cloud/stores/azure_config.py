"""Settings of the Azure store. No SDK is needed to read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.config_checks import (
    check_above_zero,
    check_choices,
    check_header_values,
    is_header_value,
    own_texts,
)

_Checksums: TypeAlias = Literal["none", "md5", "crc64"]
# Not Archive: a blob there has to be rehydrated before it can be read.
_AccessTier: TypeAlias = Literal["Hot", "Cool", "Cold"]
_CHOICES: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {"checksums": get_args(_Checksums), "access_tier": (None, *get_args(_AccessTier))}
)
# Names are identifiers of C#, and header fields. Source:
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Source: https://learn.microsoft.com/rest/api/storageservices/set-blob-tags
_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 10, 128, 256
_TAG = re.compile(r"[A-Za-z0-9 +\-./:=_]*")


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
    checksums: _Checksums = "none"
    access_tier: _AccessTier | None = None
    encryption_scope: str | None = None
    verify_tls: bool = True
    ca_bundle: str | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    max_pool_connections: int = 64
    tags: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    metadata: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    customer_key: Callable[[], bytes] | None = field(default=None, repr=False, metadata={"argument_only": True})
    credential_factory: Callable[[], Any] | None = field(default=None, repr=False, metadata={"argument_only": True})

    def __post_init__(self) -> None:
        own_texts(self, ("tags", "metadata"))
        check_above_zero(self, ("connect_timeout_s", "read_timeout_s", "max_pool_connections"))
        check_choices(self, _CHOICES)
        check_header_values(self, ("encryption_scope",))
        self._check_new_blobs()
        if self.account_url is not None:
            _check_url(self.account_url)
        if self.anonymous and self.credential_factory is not None:
            raise ConfigError("anonymous and credential_factory exclude each other", hint="leave one of them out")
        if self.customer_key is not None and self.encryption_scope is not None:
            raise ConfigError("customer_key and encryption_scope exclude each other", hint="leave one of them out")

    def _check_new_blobs(self) -> None:
        for key, value in self.metadata.items():
            if not (_METADATA_NAME.fullmatch(key) and is_header_value(value)):
                raise ConfigError(
                    f"the metadata {key!r} cannot be stored",
                    hint="a name has letters, digits and underscores and begins with no digit; a value is plain ASCII",
                )
        if len(self.tags) > _MAX_TAGS:
            raise ConfigError(f"{len(self.tags)} tags are too many", hint=f"a blob has {_MAX_TAGS} at most")
        for key, value in self.tags.items():
            fits = 0 < len(key) <= _MAX_TAG_NAME and len(value) <= _MAX_TAG_VALUE
            if not (fits and _TAG.fullmatch(key) and _TAG.fullmatch(value)):
                raise ConfigError(
                    f"the tag {key!r} cannot be stored",
                    hint=f"a name has 1 to {_MAX_TAG_NAME} characters, a value {_MAX_TAG_VALUE} at most: "
                    "letters, digits, spaces and + - . / : = _",
                )


def account_at(url: str | None) -> str | None:
    """Tell which account an address belongs to.

    Args:
        url: The address of a blob service.

    Returns:
        The account; None for a domain of its owner's.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    name, _, domain = (parts.hostname or "").partition(".")
    if "blob" in domain.split("."):
        return name.removesuffix("-secondary")
    # Servers that have no name for each account (Azurite) have it in the path.
    return parts.path.strip("/").partition("/")[0] or None


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
