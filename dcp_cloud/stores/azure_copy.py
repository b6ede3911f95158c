"""Copies within a storage account: the service starts one and tells when it is done."""

from __future__ import annotations

import time

from azure.core import MatchConditions

from dcp_cloud.errors import InvalidRequestError
from dcp_cloud.stores.azure_client import AzureClient
from dcp_cloud.stores.azure_errors import translated
from dcp_cloud.stores.azure_transport import ship
from dcp_cloud.stores.base import ObjectMeta

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0


def can_copy(source: AzureClient, target: AzureClient) -> bool:
    """Tell whether a container's client can ask for copies out of another's.

    Args:
        source: Client of the container with the object.
        target: Client of the container to copy to.

    Returns:
        True within one account, which needs no authorisation of its own for the source, and without customer's keys
        or encryption scopes.
    """
    config = target.config
    if source.config != config or config.customer_key is not None or config.encryption_scope is not None:
        return False
    return _service(source) == _service(target)


def copy_blob(source: AzureClient, target: AzureClient, meta: ObjectMeta, key: str) -> None:
    """Copy a blob, and wait until it is there.

    Args:
        source: Client of the container that it is in.
        target: Client of the container to copy to.
        meta: The blob.
        key: Key of the copy.

    Raises:
        InvalidRequestError: The service gave the copy up.
    """
    blob = target.blob(key)
    with translated(f"copy_blob to {target.uri.root}", key=meta.key):
        answer = blob.start_copy_from_url(
            source.blob(meta.key).url.partition("?")[0],
            source_etag=f'"{meta.etag}"',
            source_match_condition=MatchConditions.IfNotModified,
            **ship(meta.key),
        )
        status, pause_s = answer["copy_status"], _FIRST_PAUSE_S
        while status == "pending":
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            status = blob.get_blob_properties(**ship(key)).copy.status
    if status != "success":
        raise InvalidRequestError("the service gave the copy up", key=meta.key, cause=f"its status is {status}")


def _service(client: AzureClient) -> tuple[str | None, str]:
    container = client.container
    return container.account_name, container.primary_hostname
