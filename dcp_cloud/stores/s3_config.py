"""Settings of the S3 store. No SDK is needed to read them."""

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

_AddressingStyle: TypeAlias = Literal["auto", "virtual", "path"]
_Compatibility: TypeAlias = Literal["none", "ceph", "minio", "r2"]
_Checksums: TypeAlias = Literal["when_supported", "when_required"]
_Encryption: TypeAlias = Literal["AES256", "aws:kms", "aws:kms:dsse"]
_CHOICES: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        "addressing_style": get_args(_AddressingStyle),
        "compatibility": get_args(_Compatibility),
        "checksums": get_args(_Checksums),
        "encryption": (None, *get_args(_Encryption)),
    }
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Objects of these classes have to be restored before they can be read.
# Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects.html
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
# Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 10, 128, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """How to reach a bucket on S3 or on a compatible server, and how objects are stored there.

    What is left out comes from the SDK's own chain: environment, profile, workload identity, instance role.
    Credentials always come from there.

    Args:
        region: Region to sign for.
        endpoint_url: URL of a compatible server.
        profile: Profile of the AWS configuration files.
        addressing_style: Whether the bucket stands in the path or in the host name. ``auto``: in the path for a
            custom endpoint, in the host name otherwise.
        compatibility: Whose ways to follow. ``r2``, Cloudflare R2: its form of conditions, its limits, its region.
            ``minio``: how it lists unfinished uploads. ``ceph``: its form of conditions, which is also that of
            ``none``; most others need none.
        checksums: ``when_supported`` sends a CRC-32 with every object and part, which S3 verifies and stores;
            ``when_required`` sends none, for servers that refuse the newer checksum headers.
        access_point: ARN or alias of the access point through which to reach the bucket; it takes the bucket's place
            in all requests.
        dual_stack: Use the endpoints that have IPv6 too.
        accelerate: Use Transfer Acceleration, which must be switched on for the bucket.
        fips: Use the endpoints that are validated by FIPS 140-3.
        expected_bucket_owner: Account that must own the bucket; requests to a bucket of any other are refused.
        requester_pays: Agree to pay for requests and transfer, where the bucket demands it.
        encryption: Server-side encryption of new objects instead of the bucket's: ``AES256`` (SSE-S3), ``aws:kms``
            (SSE-KMS) or ``aws:kms:dsse`` (two layers).
        kms_key_id: KMS key of new objects: id, ARN or alias. Without it, ``aws:kms`` takes the account's key for S3.
        bucket_key: Whether new objects use an S3 bucket key, which saves calls to KMS, instead of the bucket's choice.
        storage_class: Storage class of new objects instead of ``STANDARD``. Not one that has to be restored to be read.
        bucket_owner_full_control: Give the bucket's owner full control of new objects, for buckets of other accounts
            that still use ACLs.
        anonymous: Do not sign: for public buckets.
        proxy_url: Proxy for all requests, ``http://host:port``, instead of those that ``HTTP_PROXY``, ``HTTPS_PROXY``
            and ``NO_PROXY`` name.
        verify_tls: Whether to check the server's certificate.
        ca_bundle: File of CA certificates to trust instead of the SDK's.
        connect_timeout_s: Time for TCP connect and TLS handshake, seconds.
        read_timeout_s: Longest time without progress while sending or receiving, seconds.
        max_pool_connections: Connections kept open for reuse.
        tags: Tags of new objects. Argument only.
        metadata: Metadata of new objects, ASCII. Argument only.
        customer_key: Gives the 32-byte AES key with which S3 encrypts and decrypts (SSE-C); a picklable function,
            so that no settings ever hold the key. Asked once per process. Argument only.
        session_factory: Makes the ``boto3.session.Session`` to use; a picklable function. For credentials that no
            chain finds. Argument only.
    """

    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    addressing_style: _AddressingStyle = "auto"
    compatibility: _Compatibility = "none"
    checksums: _Checksums = "when_supported"
    access_point: str | None = None
    dual_stack: bool = False
    accelerate: bool = False
    fips: bool = False
    expected_bucket_owner: str | None = None
    requester_pays: bool = False
    encryption: _Encryption | None = None
    kms_key_id: str | None = None
    bucket_key: bool | None = None
    storage_class: str | None = None
    bucket_owner_full_control: bool = False
    anonymous: bool = False
    proxy_url: str | None = None
    verify_tls: bool = True
    ca_bundle: str | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    max_pool_connections: int = 64
    tags: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    metadata: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    customer_key: Callable[[], bytes] | None = field(default=None, repr=False, metadata={"argument_only": True})
    session_factory: Callable[[], Any] | None = field(default=None, repr=False, metadata={"argument_only": True})

    def __post_init__(self) -> None:
        own_texts(self, ("tags", "metadata"))
        check_above_zero(self, ("connect_timeout_s", "read_timeout_s", "max_pool_connections"))
        check_choices(self, _CHOICES)
        self._check_endpoint()
        self._check_encryption()
        self._check_new_objects()
        if self.session_factory is not None and self.profile is not None:
            raise ConfigError("session_factory and profile exclude each other", hint="name the profile in the session")

    def _check_endpoint(self) -> None:
        for name in ("endpoint_url", "proxy_url"):
            url = getattr(self, name)
            if url is not None and not _is_base_url(url):
                # Not repeated: there may be a password in it.
                raise ConfigError(
                    f"{name} is no URL of a host",
                    hint="write http://host:port or https://host:port, without a user; "
                    "a proxy's user and password belong into HTTPS_PROXY",
                )
        if self.proxy_url is not None and not self.proxy_url.startswith("http://"):
            raise ConfigError("proxy_url must begin with http://", hint="https endpoints are tunnelled through it")
        if self.endpoint_url is not None and (self.dual_stack or self.accelerate or self.fips):
            raise ConfigError(
                "dual_stack, accelerate and fips choose among Amazon's endpoints",
                cause="endpoint_url names another one",
                hint="leave endpoint_url out, or write the wanted endpoint there",
            )
        if self.expected_bucket_owner is not None and not re.fullmatch(r"\d{12}", self.expected_bucket_owner):
            raise ConfigError(
                f"expected_bucket_owner={self.expected_bucket_owner!r} is no account", hint="it has 12 digits"
            )

    def _check_encryption(self) -> None:
        if self.customer_key is not None:
            if self.encryption or self.kms_key_id or self.bucket_key is not None:
                raise ConfigError(
                    "customer_key excludes encryption, kms_key_id and bucket_key", hint="leave one of them out"
                )
            if self.endpoint_url is not None and not self.endpoint_url.startswith("https://"):
                raise ConfigError("customer_key would travel in the clear", hint="use an https endpoint")
        if self.kms_key_id is not None and self.encryption not in ("aws:kms", "aws:kms:dsse"):
            raise ConfigError("kms_key_id needs encryption='aws:kms' or 'aws:kms:dsse'", hint="add encryption=aws:kms")

    def _check_new_objects(self) -> None:
        if self.storage_class in _ARCHIVES:
            raise ConfigError(
                f"objects of the storage class {self.storage_class} cannot be read as they are",
                hint="use GLACIER_IR, or let a lifecycle rule archive old checkpoints",
            )
        check_header_values(self, ("kms_key_id", "storage_class", "access_point"))
        for key, value in self.metadata.items():
            if not (_HEADER_NAME.fullmatch(key) and is_header_value(value)):
                raise ConfigError(f"the metadata {key!r} cannot be stored", hint="keys and values must be plain ASCII")
        if len(self.tags) > _MAX_TAGS:
            raise ConfigError(f"{len(self.tags)} tags are too many", hint=f"an object has {_MAX_TAGS} at most")
        for key, value in self.tags.items():
            if not (0 < len(key) <= _MAX_TAG_NAME and len(value) <= _MAX_TAG_VALUE):
                raise ConfigError(
                    f"the tag {key!r} cannot be stored",
                    hint=f"a name has 1 to {_MAX_TAG_NAME} characters, a value {_MAX_TAG_VALUE} at most",
                )


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # half an IPv6 address
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and parts.username is None
