"""The place a writer or reader works at: its URI, its store and its settings.

A location pickles as configuration, because a checkpoint process gets its writer through a pipe; the store makes its
client where it is used. Moving to another prefix of the same bucket keeps the client.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, TypeAlias

from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.settings import merge_settings
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.stores.registry import check_uri_options, open_bucket, open_store, server_of
from dcp_cloud.uri import StoreURI

URILike: TypeAlias = str | os.PathLike[str] | StoreURI
StoreLike: TypeAlias = ObjectStore | Callable[[StoreURI], ObjectStore]


class Location:
    """Where a checkpoint is, and how to get there.

    Args:
        uri: The checkpoint's URI.
        transfer: Transfer settings; they win over the URI's options.
        store: A store rooted at the URI's place to use instead of opening one, or a function that makes one for a URI.
        config: The provider's settings (``S3Config`` …).
        schemes: Schemes to accept; None for all.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        transfer: TransferConfig | None,
        store: StoreLike | None,
        config: object,
        schemes: Collection[str] | None,
    ) -> None:
        self._argument = transfer
        self._config = config
        self._schemes = schemes
        self._given = store
        self._enter(StoreURI.parse(uri), None)

    def move(self, uri: URILike) -> None:
        """Go to another place.

        Args:
            uri: Its URI. Options that it leaves out stay as they are within the same bucket.

        Raises:
            ConfigError: The URI is wrong, or the store was given for one place only.
        """
        target = StoreURI.parse(uri)
        if _same_bucket(target, self.uri) and not target.options:
            target = replace(target, options=self.uri.options)
        if (target.root, dict(target.options)) == (self.uri.root, dict(self.uri.options)):
            return
        if self._given is not None and not callable(self._given):
            raise ConfigError(
                "the store that was passed serves one place only",
                key=target.root,
                cause=f"it is rooted at {self.uri.root}",
                hint="pass store= a function of the URI, or make a new writer or reader",
            )
        bucket = self._bucket if _same_place(target, self.uri) else None
        self._enter(target, bucket)

    def is_at(self, other: Location) -> bool:
        """Tell whether this is the same place as another, however their URIs are written.

        Args:
            other: Another location.

        Returns:
            False only if they are known to be two places: what is written to one then leaves the other alone.
        """
        return self.uri.prefix == other.uri.prefix and self._shares_bucket(other)

    def is_below(self, other: Location) -> bool:
        """Tell whether this place lies within another, however their URIs are written.

        Args:
            other: Another location.

        Returns:
            False only if it is known to lie elsewhere.
        """
        around = other.uri.prefix.rstrip("/")
        is_within = self.uri.prefix.startswith(f"{around}/") if around or self.uri.scheme == "file" else True
        return is_within and self.uri.prefix != other.uri.prefix and self._shares_bucket(other)

    def _shares_bucket(self, other: Location) -> bool:
        if (self.uri.scheme, self.uri.bucket) != (other.uri.scheme, other.uri.bucket):
            return False
        servers = {server_of(place.uri, place._config) for place in (self, other)}
        return len(servers) == 1 or None in servers

    def _enter(self, uri: StoreURI, bucket: ObjectStore | None) -> None:
        """Go to a place, or stay where this is if there is anything wrong with it."""
        if self._schemes is not None and uri.scheme not in self._schemes:
            raise ConfigError(
                f"this class works on {' and '.join(sorted(self._schemes))}:// only",
                key=uri.root,
                hint="use CloudStorageWriter and CloudStorageReader, which take any scheme",
            )
        transfer = merge_settings(self._argument, TransferConfig, uri.options)
        if self._given is not None:
            check_uri_options(uri)  # opening a store does so itself
            store = self._given(uri) if callable(self._given) else self._given
        elif uri.scheme == "file":
            store = open_store(uri, config=self._config)
        else:
            bucket = open_bucket(uri, config=self._config) if bucket is None else bucket
            store = PrefixStore(bucket, uri.prefix) if uri.prefix else bucket
        self.uri, self.transfer, self.store, self._bucket = uri, transfer, store, bucket


def part_file(uri: URILike, suffixes: tuple[str, ...]) -> tuple[StoreURI, str | None]:
    """Part the name of a file from its place.

    Args:
        uri: A URI, of a place or of a file.
        suffixes: How the names of such files end.

    Returns:
        The place, and the file's name if the URI names a file.
    """
    place = StoreURI.parse(uri)
    directory, _, name = place.prefix.rpartition("/")
    if not name.endswith(suffixes):
        return place, None
    return place.at(directory or ("/" if place.scheme == "file" else "")), name


def _same_place(a: StoreURI, b: StoreURI) -> bool:
    return _same_bucket(a, b) and dict(a.options) == dict(b.options)


def _same_bucket(a: StoreURI, b: StoreURI) -> bool:
    return (a.scheme, a.bucket, a.account, a.endpoint) == (b.scheme, b.bucket, b.account, b.endpoint)


def is_checkpoint_uri(checkpoint_id: Any) -> bool:  # noqa: ANN401 - torch passes whatever the user gave
    """Tell whether a checkpoint id is a URI that this package can serve, for torch's auto-selection.

    Args:
        checkpoint_id: What the user passed to torch.

    Returns:
        True for the text of a URI with a known scheme. Plain paths are left to torch's own classes.
    """
    if not isinstance(checkpoint_id, str) or "://" not in checkpoint_id:
        return False
    try:
        StoreURI.parse(checkpoint_id)
    except ConfigError:
        return False
    return True
