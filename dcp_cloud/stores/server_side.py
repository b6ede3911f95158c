"""Copies that a provider makes by itself: the bytes never come here.

An optional part of the store contract: a store that can do it has the two methods of :class:`ServerSideCopy`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from dcp_cloud.errors import InvalidRequestError, NotFoundError, PermissionDeniedError, PreconditionError
from dcp_cloud.stores.base import ObjectMeta, ObjectStore
from dcp_cloud.stores.keys import below
from dcp_cloud.stores.prefix import PrefixStore

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Repeat(Protocol):
    """Runs one request, and again if it fails in a way that may pass."""

    def __call__(self, request: Callable[[], ResultT]) -> ResultT:
        """Run it.

        Args:
            request: The request.

        Returns:
            What the request returned.
        """
        ...


Copier: TypeAlias = Callable[[str, ObjectMeta, Repeat], bool]
"""Copies an object, described at the source, to a key of the target; False if the provider would not."""


@runtime_checkable
class ServerSideCopy(Protocol):
    """What a store has beside the contract if its provider copies."""

    def copies_from(self, source: ObjectStore) -> bool:
        """Tell whether the provider could copy from there: the same service, reached with the same credentials.

        Args:
            source: Another store, not below a prefix.
        """
        ...

    def copy_from(self, source: ObjectStore, meta: ObjectMeta, key: str, repeat: Repeat) -> None:
        """Copy an object, replacing what is at the key.

        A long object takes many requests: one that fails is repeated alone, and a cancelled scope ends them.

        Args:
            source: A store of which ``copies_from`` is true.
            meta: The object there; if it is another version by now, nothing is copied.
            key: Key of the copy.
            repeat: Runs each request.

        Raises:
            PreconditionError: The object at the source is another version.
            PermissionDeniedError: These credentials may not copy.
            InvalidRequestError: The provider does not copy this.
            DcpCloudError: What ``repeat`` raises when a request keeps failing, or is not wanted any more.
        """
        ...


def copier_between(source: ObjectStore, target: ObjectStore) -> Copier | None:
    """Find out whether one provider holds both ends.

    Args:
        source: Where from.
        target: Where to.

    Returns:
        What copies an object; None if bytes have to be read here and sent.
    """
    root, start = _unwrap(source)
    home, place = _unwrap(target)
    if not isinstance(home, ServerSideCopy) or not home.copies_from(root):
        return None

    def copy(key: str, meta: ObjectMeta, repeat: Repeat) -> bool:
        try:
            home.copy_from(root, replace(meta, key=start + meta.key), place + key, repeat)
        except PreconditionError:
            raise
        except (PermissionDeniedError, InvalidRequestError, NotFoundError) as error:
            logger.info("the provider does not copy %s, so it is read and sent: %s", meta.key, error)
            return False
        return True

    return copy


def _unwrap(store: ObjectStore) -> tuple[ObjectStore, str]:
    start = ""
    while isinstance(store, PrefixStore):
        start = below(store.prefix.strip("/")) + start
        store = store.store
    return store, start
