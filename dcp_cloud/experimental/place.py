"""The place of the checkpoint at hand: torch's experimental classes name it anew with every call."""

from __future__ import annotations

import os

from dcp_cloud.checkpoint.location import Location, StoreLike
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore


class Place:
    """Goes from checkpoint to checkpoint, keeping the client as long as the bucket is the same.

    Args:
        transfer: Transfer settings; they win over the URI's options.
        store: A function that makes a store for a URI, or a store for one place only.
        store_config: The provider's settings.
    """

    def __init__(self, *, transfer: TransferConfig | None, store: StoreLike | None, store_config: object) -> None:
        self._transfer = transfer
        self._store = store
        self._store_config = store_config
        self._location: Location | None = None

    def go(self, path: str | os.PathLike[str]) -> Location:
        """Go to a checkpoint.

        Args:
            path: Its URI, or a local path that starts with ``/`` or ``./``.

        Returns:
            The place.

        Raises:
            ConfigError: The URI is wrong.
        """
        if self._location is None:
            self._location = Location(
                path, transfer=self._transfer, store=self._store, config=self._store_config, schemes=None
            )
        else:
            self._location.move(path)
        return self._location

    def retrying(self, hook: EventHook) -> RetryingStore:
        """Give the store of the place, with retries.

        Args:
            hook: Told of requests.

        Returns:
            The store.
        """
        if self._location is None:
            raise ConfigError("no checkpoint was named yet")
        return RetryingStore(self._location.store, Retrier(config=self._location.transfer.retry, hook=hook))

    def close(self) -> None:
        """Release connections; they are made anew if needed."""
        if self._location is not None:
            self._location.store.close()
