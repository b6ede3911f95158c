"""Making the SDK's client, and the wire that goes beside it, from the settings."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import boto3.session
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.loaders import create_loader

from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.stores.s3_dialect import DIALECTS
from dcp_cloud.stores.s3_repeat import FrozenCredentials
from dcp_cloud.stores.wire import Wire, WireConfig


def _add_content_md5(params: Any, context: Any, **_kwargs: object) -> None:  # noqa: ANN401 - the SDK's dictionaries
    """Add what S3 demanded of a batch delete before checksums were many; compatible servers still do."""
    if context.get("endpoint_properties", {}).get("backend") == "S3Express":
        return  # directory buckets know no MD5; the SDK sends a CRC-32 as well
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@lru_cache(maxsize=4)
def _shared_loader(data_path: str | None) -> Any:  # noqa: ANN401 - the SDK has no types
    """Let all sessions share the service descriptions: reading them anew costs 0.1 CPU seconds for each client."""
    return create_loader(data_path)


def make_client(config: S3Config) -> tuple[Any, Wire, Callable[[], FrozenCredentials | None]]:
    """Make what requests go through.

    Args:
        config: The settings.

    Returns:
        The SDK's client; the wire for bodies; what gives the credentials in force, or None where only the SDK may sign.
    """
    ca_bundle = config.ca_bundle
    credentials: Any = None
    if config.session_factory is not None:
        session = config.session_factory()
        ca_bundle = ca_bundle or os.environ.get("AWS_CA_BUNDLE")
    else:
        core = botocore.session.Session(profile=config.profile)
        session = boto3.session.Session(botocore_session=core)
        core.register_component("data_loader", _shared_loader(core.get_config_variable("data_path")))
        ca_bundle = ca_bundle or core.get_config_variable("ca_bundle")
        # Not of a session that somebody else has made: it may change requests in ways of its own.
        credentials = None if config.anonymous else session.get_credentials()
    s3: Any = {"payload_signing_enabled": False}
    if config.accelerate:
        s3["use_accelerate_endpoint"] = True
    if config.addressing_style != "auto":
        s3["addressing_style"] = config.addressing_style
    client = session.client(
        "s3",
        region_name=config.region or DIALECTS[config.compatibility].region,
        endpoint_url=config.endpoint_url,
        verify=(ca_bundle or True) if config.verify_tls else False,
        config=Config(
            signature_version=UNSIGNED if config.anonymous else None,
            # One attempt: retrying is the transfer layer's work. No SHA-256 over bodies: TLS protects them on the
            # way, and a CRC that goes with them is verified at the other end.
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3=s3,
            # None leaves the choice to the SDK's own configuration.
            use_dualstack_endpoint=config.dual_stack or None,
            use_fips_endpoint=config.fips or None,
            proxies={"http": config.proxy_url, "https": config.proxy_url} if config.proxy_url else None,
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.read_timeout_s,
            max_pool_connections=config.max_pool_connections,
            # The SDK must not compute checksums of placeholder bodies; the store sends its own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra="dcp-cloud",
        ),
    )
    client.meta.events.register("before-call.s3.DeleteObjects", _add_content_md5)
    wire = Wire(
        WireConfig(
            connect_timeout_s=config.connect_timeout_s,
            read_timeout_s=config.read_timeout_s,
            verify_tls=config.verify_tls,
            ca_bundle=ca_bundle or get_cert_path(True),  # noqa: FBT003 - the SDK's signature
            max_idle=config.max_pool_connections,
            proxy_url=config.proxy_url,
        )
    )
    return client, wire, lambda: None if credentials is None else credentials.get_frozen_credentials()
