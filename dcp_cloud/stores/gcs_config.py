"""Settings of the Google Cloud Storage store. No SDK is needed to read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.config_checks import (
    check_above_zero,
    check_choices,
    check_header_values,
    is_header_value,
    own_texts,
)

_UploadMethod: TypeAlias = Literal["xml-multipart", "compose"]
# What can stand in an HTTP header field: custom metadata travels in them.
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class GCSConfig:
    """How to reach a bucket on Google Cloud Storage.

    Credentials come from the SDK's own chain (application default credentials): ``GOOGLE_APPLICATION_CREDENTIALS``
    with a service account's or a workload identity's file, ``gcloud auth application-default login``, the service
    account of the machine or pod.

    Args:
        endpoint_url: URL of the service instead of ``https://storage.googleapis.com``: a private endpoint, another
            universe, an emulator. Left out, ``STORAGE_EMULATOR_HOST`` is taken, which also means no credentials.
        anonymous: Send no credentials: for public buckets and emulators.
        upload_method: How an object goes up in parts. ``xml-multipart`` leaves no temporary objects; ``compose``
            stores pieces, joins and deletes them, for servers that do not have the former.
        user_project: Project to bill for requests, where the requester pays.
        kms_key_name: Cloud KMS key for new objects instead of the bucket's:
            ``projects/…/locations/…/keyRings/…/cryptoKeys/…``.
        storage_class: Storage class of new objects instead of the bucket's.
        verify_tls: Whether to check the server's certificate.
        ca_bundle: File of CA certificates to trust instead of the SDK's.
        connect_timeout_s: Time for TCP connect and TLS handshake, seconds.
        read_timeout_s: Longest time without progress while sending or receiving, seconds.
        max_pool_connections: Connections kept open for reuse.
        metadata: Custom metadata of new objects, ASCII. Argument only.
        credentials_factory: Makes the ``google.auth.credentials.Credentials`` to use; a picklable function. For
            credentials that the chain does not find. Argument only.
    """

    endpoint_url: str | None = None
    anonymous: bool = False
    upload_method: _UploadMethod = "xml-multipart"
    user_project: str | None = None
    kms_key_name: str | None = None
    storage_class: str | None = None
    verify_tls: bool = True
    ca_bundle: str | None = None
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    max_pool_connections: int = 64
    metadata: Mapping[str, str] = field(default_factory=dict, metadata={"argument_only": True})
    credentials_factory: Callable[[], Any] | None = field(default=None, repr=False, metadata={"argument_only": True})

    def __post_init__(self) -> None:
        own_texts(self, ("metadata",))
        if self.endpoint_url is not None and not self.endpoint_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"endpoint_url={self.endpoint_url!r} is no URL", hint="write http://host:port or https://host:port"
            )
        check_choices(self, {"upload_method": get_args(_UploadMethod)})
        if self.anonymous and self.credentials_factory is not None:
            raise ConfigError("anonymous and credentials_factory exclude each other", hint="leave one of them out")
        check_above_zero(self, ("connect_timeout_s", "read_timeout_s", "max_pool_connections"))
        check_header_values(self, ("user_project", "kms_key_name", "storage_class"))
        for key, value in self.metadata.items():
            if not (_HEADER_NAME.fullmatch(key) and is_header_value(value)):
                raise ConfigError(
                    f"the custom metadata {key!r} cannot be stored", hint="keys and values must be plain ASCII"
                )
