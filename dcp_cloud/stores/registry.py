"""From a URI to a store: the table of schemes. A new store is one line in it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dcp_cloud.config import RetryConfig, TransferConfig, check_options
from dcp_cloud.errors import ConfigError, MissingExtraError
from dcp_cloud.settings import merge_settings
from dcp_cloud.stores.azure_config import account_at
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.uri import StoreURI


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scheme:
    """How a scheme's store is opened.

    Args:
        loader: ``module:function`` that takes a ``StoreURI`` and the settings, and opens the bucket's root.
        settings: ``module:class`` of the settings record, in a module that needs no SDK; None if there is none.
        extra: The extra that brings the SDK; None if none is needed.
    """

    loader: str
    settings: str | None = None
    extra: str | None = None


_SCHEMES: Mapping[str, _Scheme] = MappingProxyType(
    {
        "memory": _Scheme(loader="dcp_cloud.stores.memory:open_memory"),
        "file": _Scheme(loader="dcp_cloud.stores.local:open_local"),
        "s3": _Scheme(loader="dcp_cloud.stores.s3:open_s3", settings="dcp_cloud.stores.s3_config:S3Config", extra="s3"),
        "gs": _Scheme(
            loader="dcp_cloud.stores.gcs:open_gcs", settings="dcp_cloud.stores.gcs_config:GCSConfig", extra="gcs"
        ),
        "az": _Scheme(
            loader="dcp_cloud.stores.azure:open_azure",
            settings="dcp_cloud.stores.azure_config:AzureConfig",
            extra="azure",
        ),
    }
)

# Where the SDKs look for the server when no setting names one.
_SERVER_VARIABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "az": ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"),
    }
)


def open_store(uri: str | os.PathLike[str] | StoreURI, *, config: object = None) -> ObjectStore:
    """Open the place that a URI names; keys are relative to its prefix. Nothing is sent yet.

    Args:
        uri: ``s3://bucket/prefix?option=value``, ``gs://…``, ``az://…``, ``file:///dir``, ``memory://name`` …
        config: The provider's settings (``S3Config``, ``GCSConfig``, ``AzureConfig``); they win over the options.

    Returns:
        The store.

    Raises:
        InvalidURIError: The URI names no place.
        UnknownOptionError: An option of the URI belongs to no setting.
        ConfigError: A setting has no valid value, or belongs to another provider.
        MissingExtraError: The provider's SDK is not installed.
    """
    parsed = StoreURI.parse(uri)
    if parsed.scheme == "file":
        # Rooted at the directory, not at "/": so the store can refuse whatever leads out of it.
        return _open(parsed, config)
    store = _open(parsed, config)
    return PrefixStore(store, parsed.prefix) if parsed.prefix else store


def open_bucket(uri: str | os.PathLike[str] | StoreURI, *, config: object = None) -> ObjectStore:
    """Open the whole bucket that a URI lies in, so that one client serves many prefixes.

    Args:
        uri: As for :func:`open_store`; its prefix is passed over. The bucket of a ``file`` URI is the file system.
        config: As for :func:`open_store`.

    Returns:
        The store; ``PrefixStore(store, uri.prefix)`` is what :func:`open_store` returns.

    Raises:
        ConfigError: As for :func:`open_store`.
    """
    parsed = StoreURI.parse(uri)
    return _open(parsed.at("/") if parsed.scheme == "file" else parsed, config)


def provider_section(uri: StoreURI) -> str | None:
    """Name the provider's part of the environment and of the settings file.

    Args:
        uri: A URI.

    Returns:
        One of ``dcp_cloud.settings.SECTIONS``; None for a store without settings.
    """
    return _SCHEMES[uri.scheme].extra


def provider_settings(uri: StoreURI) -> type[Any] | None:
    """Find the provider's settings record.

    Args:
        uri: A URI.

    Returns:
        ``S3Config``, ``GCSConfig`` or ``AzureConfig``; None for a store without settings.
    """
    scheme = _SCHEMES[uri.scheme]
    return _load(scheme.settings, uri, scheme) if scheme.settings else None


def check_uri_options(uri: StoreURI) -> None:
    """Refuse options of a URI that no setting reads.

    Args:
        uri: A URI.

    Raises:
        UnknownOptionError: An option is unknown; the message names the nearest valid ones.
    """
    settings_type = provider_settings(uri)
    known = [TransferConfig, RetryConfig] + ([settings_type] if settings_type else [])
    check_options(uri.options, known, where=uri.root)


def server_of(uri: StoreURI, config: object = None) -> str | None:
    """Name the server or the account that a bucket is on: one bucket's name on two of them is two buckets.

    Args:
        uri: The bucket's URI.
        config: The provider's settings; they win over the options.

    Returns:
        The endpoint's URL or the account's name, the same for every way to write it; empty for the provider's own
        endpoint. None where only the SDK knows.
    """
    settings_type = provider_settings(uri)
    if settings_type is None:
        return ""
    settings = merge_settings(config, settings_type, uri.options, section=provider_section(uri))
    variable = next(filter(None, map(os.environ.get, _SERVER_VARIABLES.get(uri.scheme, ()))), None)
    if uri.scheme != "az":
        return (settings.endpoint_url or variable or "").rstrip("/")
    url = settings.account_url
    return settings.account or uri.account or account_at(url) or url or variable


def _open(parsed: StoreURI, config: object) -> ObjectStore:
    scheme = _SCHEMES[parsed.scheme]
    settings_type = provider_settings(parsed)
    check_uri_options(parsed)
    if config is not None and (settings_type is None or not isinstance(config, settings_type)):
        wanted = settings_type.__name__ if settings_type else "no configuration"
        raise ConfigError(f"a {parsed.scheme}:// store takes {wanted}, not {type(config).__name__}", key=parsed.root)
    settings = merge_settings(config, settings_type, parsed.options, section=scheme.extra) if settings_type else None
    store: ObjectStore = _load(scheme.loader, parsed, scheme)(parsed, settings)
    return store


def _load(target: str, uri: StoreURI, scheme: _Scheme) -> Any:  # noqa: ANN401 - a class or a function
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dcp_cloud"):
            raise ConfigError(f"{uri.scheme}:// is not supported by this version of dcp-cloud", key=uri.root) from error
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(
            f"{uri.scheme}:// needs the package {package!r}, which is not installed",
            key=uri.root,
            hint=f"install it in the clone of dcp-cloud: pip install '.[{scheme.extra}]'",
        ) from error
