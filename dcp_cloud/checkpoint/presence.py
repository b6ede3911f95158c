"""Whether what the ranks say that they stored lies where the commit will say.

Each rank has a writer of its own. One that works on a disk of its own node, or at a URI with a time of its own in it,
stores its data without an error, and only a load would find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from torch.distributed.checkpoint.storage import WriteResult

from dcp_cloud.errors import IncompleteCheckpointError, NotFoundError, PermissionDeniedError
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.together import together

# So many are asked for at once, and up to so many one by one: a listing tells a thousand, but takes along what else
# lies below the prefix.
_AT_ONCE = 16
_MOST_OTHERS = 2000


def check_stored(
    store: RetryingStore,
    results: Iterable[Iterable[WriteResult]],
    end_of: Callable[[Any], tuple[str, int]],
    *,
    where: str,
) -> None:
    """See that every object of every rank is in the coordinator's store.

    Args:
        store: Store rooted at the place of the commit.
        results: Results of all ranks.
        end_of: Gives the object and the end of an item in it, from its storage record.
        where: URI of the checkpoint, for the message.

    Raises:
        IncompleteCheckpointError: An object is not there, or shorter than its items.
        StoreError: The store refused.
    """
    ends: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for rank, rank_results in enumerate(results):
        for result in rank_results:
            key, end = end_of(result.storage_data)
            if end > ends.get(key, -1):
                ends[key], ranks[key] = end, rank
    for key, size_bytes in _sizes(store, list(ends)):
        if size_bytes is None or size_bytes < ends[key]:
            raise IncompleteCheckpointError(
                f"rank {ranks[key]} stored its data elsewhere, so nothing was committed",
                key=where,
                cause=f"{key} is not here" if size_bytes is None else f"{key} has {size_bytes} of {ends[key]} bytes",
                hint="give all ranks the same URI, of storage that they share: not a disk of each node, no time of day",
            )


def item_end(info: Any) -> tuple[str, int]:  # noqa: ANN401 - torch's _StorageInfo
    """Give the object of an item that a writer of this package has just stored, and where the item ends in it.

    Args:
        info: Its storage record.
    """
    return info.relative_path, info.offset + info.length


def _sizes(store: RetryingStore, keys: list[str]) -> Iterator[tuple[str, int | None]]:
    found: dict[str, int] = {}
    if len(keys) > _AT_ONCE:
        limit = len(keys) + _MOST_OTHERS

        def listed() -> dict[str, int]:
            return {meta.key: meta.size_bytes for meta in islice(store.store.list(), limit)}

        with suppress(PermissionDeniedError):  # a save needs no right to list
            found = store.retrier.call(listed, verb="list", key="")
    yield from ((key, found[key]) for key in keys if key in found)
    # A listing may lag behind, and it may have ended early.
    left = [key for key in keys if key not in found]
    for begin in range(0, len(left), _AT_ONCE):
        batch = left[begin : begin + _AT_ONCE]
        calls = [lambda key=key: _size(store, key) for key in batch]
        yield from zip(batch, together(calls), strict=True)


def _size(store: RetryingStore, key: str) -> int | None:
    try:
        return store.head(key).size_bytes
    except NotFoundError:
        return None
