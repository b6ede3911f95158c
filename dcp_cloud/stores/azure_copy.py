"""Copies within a storage account: the service starts one and tells when it is done."""

from __future__ import annotations

import logging
import threading

from azure.core import MatchConditions

from dcp_cloud.errors import DcpCloudError, InvalidRequestError, TransferCancelledError
from dcp_cloud.stores.azure_client import AzureClient
from dcp_cloud.stores.azure_errors import translated
from dcp_cloud.stores.azure_transport import ship
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.stores.cancel import current_scope
from dcp_cloud.stores.server_side import Repeat

logger = logging.getLogger(__name__)

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


def copy_blob(source: AzureClient, target: AzureClient, meta: ObjectMeta, key: str, repeat: Repeat) -> None:
    """Copy a blob, and wait until it is there.

    Args:
        source: Client of the container that it is in.
        target: Client of the container to copy to.
        meta: The blob.
        key: Key of the copy.
        repeat: Runs each request.

    Raises:
        InvalidRequestError: The service gave the copy up.
        TransferCancelledError: Nobody waits for it any more; the service was told to stop.
    """
    blob = target.blob(key)

    def begin() -> dict[str, str]:
        with translated(f"copy_blob to {target.uri.root}", key=meta.key):
            answer: dict[str, str] = blob.start_copy_from_url(
                source.blob(meta.key).url.partition("?")[0],
                source_etag=f'"{meta.etag}"',
                source_match_condition=MatchConditions.IfNotModified,
                **ship(meta.key),
            )
            return answer

    def ask() -> str | None:
        with translated(f"copy_blob to {target.uri.root}", key=key):
            status: str | None = blob.get_blob_properties(**ship(key)).copy.status
            return status

    answer = repeat(begin)
    status: str | None = answer["copy_status"]
    try:
        pause_s = _FIRST_PAUSE_S
        while status == "pending":
            _wait(pause_s, meta.key)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            status = repeat(ask)
    except BaseException:  # otherwise the service would go on copying for hours
        try:
            with translated(f"abort_copy to {target.uri.root}", key=key):
                blob.abort_copy(answer["copy_id"], **ship(key))
        except DcpCloudError as error:  # it has ended, or cannot be reached
            logger.warning("could not stop the copy of %s: %s", meta.key, error)
        raise
    if status != "success":
        raise InvalidRequestError("the service gave the copy up", key=meta.key, cause=f"its status is {status}")


def _wait(pause_s: float, key: str) -> None:
    """Pause, unless the copy is not wanted any more."""
    scope = current_scope()
    if (scope.event if scope is not None else threading.Event()).wait(pause_s):
        raise TransferCancelledError("the copy was given up", key=key, cause="another part of it failed first")


def _service(client: AzureClient) -> tuple[str | None, str]:
    container = client.container
    return container.account_name, container.primary_hostname
