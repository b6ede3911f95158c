"""The SDK's client of one container: where it is, who we are, and how it sends."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable
from typing import Any

from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient, ContainerClient, CustomerProvidedEncryptionKey, StandardBlobTier

from dcp_cloud.errors import ConfigError, DcpCloudError, InvalidRequestError, MissingExtraError
from dcp_cloud.stores.azure_config import AzureConfig, account_at
from dcp_cloud.stores.azure_errors import translated
from dcp_cloud.stores.azure_transport import WireTransport
from dcp_cloud.stores.customer_key import read_customer_key
from dcp_cloud.stores.wire import Wire, WireConfig
from dcp_cloud.uri import StoreURI

# One request for one answer, however long: the store decides what a part or a range is, not the SDK.
_WHOLE = 2**62


class AzureClient:
    """Makes the SDK's container client when it is first needed. Thread-safe; pickles as its configuration.

    Args:
        uri: The container's URI.
        config: How to reach it.
    """

    def __init__(self, uri: StoreURI, config: AzureConfig) -> None:
        self.uri = uri
        self.config = config
        self._lock = threading.Lock()
        self._made: tuple[int, BlobServiceClient, ContainerClient] | None = None
        self._key: CustomerProvidedEncryptionKey | None = None

    def __reduce__(self) -> tuple[type[AzureClient], tuple[StoreURI, AzureConfig]]:
        return type(self), (self.uri, self.config)

    @property
    def container(self) -> ContainerClient:
        """The SDK's client."""
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[2]
        with self._lock, translated("configuring the Azure client", key=self.uri.root):
            # Not after a fork: a credential may hold sockets that are the parent's.
            if self._made is None or self._made[0] != os.getpid():
                service = _make_service(self.uri, self.config)
                self._made = (os.getpid(), service, service.get_container_client(self.uri.bucket))
            return self._made[2]

    def blob(self, key: str) -> Any:  # noqa: ANN401 - the keywords for the transport are in no signature
        """Make the SDK's client of one blob.

        Raises:
            InvalidRequestError: The service would store the blob under another name.
        """
        if "\\" in key:
            raise InvalidRequestError(
                "Azure turns backslashes in names into slashes", key=key, hint="use another name for the checkpoint"
            )
        return self.container.get_blob_client(key)

    def encryption(self) -> dict[str, Any]:
        """Give the arguments without which the service can neither read nor write a blob with a customer's key."""
        if self.config.customer_key is None:
            return {}
        if self._key is None:
            self._key = _encryption_key(read_customer_key(self.config.customer_key))
        return {"cpk": self._key}

    def writing(self) -> dict[str, Any]:
        """Give the arguments of every request that stores bytes."""
        scope = self.config.encryption_scope
        return self.encryption() | ({"encryption_scope": scope} if scope else {})

    def creating(self) -> dict[str, Any]:
        """Give the arguments of every request that makes a blob."""
        config, arguments = self.config, self.writing()
        if config.metadata:
            arguments["metadata"] = dict(config.metadata)
        if config.tags:
            arguments["tags"] = dict(config.tags)
        if config.access_tier:
            arguments["standard_blob_tier"] = StandardBlobTier(config.access_tier)
        return arguments

    def close(self) -> None:
        """Close the resting connections; the next request connects anew."""
        if self._made is not None:
            self._made[1].close()


def _make_service(uri: StoreURI, config: AzureConfig) -> BlobServiceClient:
    account = config.account or uri.account or account_at(config.account_url)
    url = config.account_url or uri.endpoint
    options = _options(config)
    if config.credential_factory is None and not config.anonymous:
        text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
        if text and config.account_url is None:
            service = BlobServiceClient.from_connection_string(text, **options)
            if account in (None, service.account_name):
                return service
    environment = os.environ.get("AZURE_STORAGE_ACCOUNT") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if url is None:
        account = account or environment
        if account is None:
            raise ConfigError(
                "the storage account is not known",
                key=uri.root,
                hint="add ?account=…, write abfss://container@account.dfs.core.windows.net/…, "
                "or set AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING",
            )
        url = f"https://{account}.blob.core.windows.net"
    credential = _find_credential(url, account, environment, config)
    return BlobServiceClient(url, credential=credential, **options)


def _ask(factory: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the SDK takes
    try:
        return factory()
    except (DcpCloudError, AzureError):
        raise  # the SDK's own failures to sign in say what they are
    except Exception as error:
        raise ConfigError(
            "credential_factory failed", cause=type(error).__name__, hint="call it yourself to see why"
        ) from error


def _find_credential(url: str, account: str | None, environment: str | None, config: AzureConfig) -> Any:  # noqa: ANN401
    """Find a credential: a key, a signature or something that gets tokens; None for none."""
    if config.anonymous:
        return None
    if config.credential_factory is not None:
        return _ask(config.credential_factory)
    if environment is None or account in (None, environment):
        account = account or environment
        key = os.environ.get("AZURE_STORAGE_KEY") or os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
        if key and account:
            return {"account_name": account, "account_key": key}
        if signature := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
            return signature
    if url.startswith("http://"):
        # The SDK would say only that tokens need https.
        raise ConfigError(
            "there is no credential that may be used at this address",
            key=url,
            cause="a token is not sent over http, and there is no key or signature of this account",
            hint="set AZURE_STORAGE_ACCOUNT, and AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, to those of the account",
        )
    try:
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - not needed with a key or a signature
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "signing in to Azure needs the package 'azure-identity'",
            hint="install it in the clone of dcp-cloud: pip install '.[azure]'",
        ) from error
    return DefaultAzureCredential()


def _encryption_key(secret: bytes) -> CustomerProvidedEncryptionKey:
    digest = hashlib.sha256(secret).digest()
    return CustomerProvidedEncryptionKey(base64.b64encode(secret).decode(), base64.b64encode(digest).decode())


def _options(config: AzureConfig) -> dict[str, Any]:
    wire = Wire(
        WireConfig(
            connect_timeout_s=config.connect_timeout_s,
            read_timeout_s=config.read_timeout_s,
            verify_tls=config.verify_tls,
            ca_bundle=config.ca_bundle,
            max_idle=config.max_pool_connections,
        )
    )
    options: dict[str, Any] = {
        "transport": WireTransport(wire),
        # One attempt: retrying is the transfer layer's work. No redirects: the service sends none.
        "retry_total": 0,
        "permit_redirects": False,
        "max_single_put_size": _WHOLE,
        "max_single_get_size": _WHOLE,
        "user_agent": "dcp-cloud",
    }
    return options | ({"api_version": config.api_version} if config.api_version else {})
