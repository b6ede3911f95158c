"""Where a bucket is, and for where its requests are signed.

An optional part of the store contract: a store whose provider has regions that matter to requests has the method of
:class:`TellsRegion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.prefix import PrefixStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Two regions that should be one.

    Args:
        bucket: Where the bucket is; None if the server does not say.
        client: Where requests are sent first; None if nobody has set it.
    """

    bucket: str | None
    client: str | None


@runtime_checkable
class TellsRegion(Protocol):
    """What a store has beside the contract if its provider has regions."""

    def regions(self) -> Regions:
        """Ask where the bucket is.

        Raises:
            StoreError: The server refused, or could not be reached.
        """
        ...


def teller_of(store: ObjectStore) -> TellsRegion | None:
    """Find what tells the region of a store.

    Args:
        store: A store, below a prefix or not.

    Returns:
        What tells it; None where regions do not matter to requests.
    """
    while isinstance(store, PrefixStore):
        store = store.store
    return store if isinstance(store, TellsRegion) else None
