"""Reading one object whole, in parallel if it is long."""

from __future__ import annotations

from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import CorruptCheckpointError, PreconditionError, TransientError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

# What the first request asks for; most .metadata objects are shorter, and need only this one.
_FIRST_BYTES = 8 * MIB
# .metadata takes about 190 bytes per shard: this is more than 20 million shards.
_MAX_BYTES = 4096 * MIB
_PIECE_BYTES = 8 * MIB


def read_object(
    store: ObjectStore,
    key: str,
    transfer: TransferConfig,
    *,
    known: tuple[memoryview, str] | None = None,
    hook: EventHook = ignore_event,
) -> tuple[memoryview, str]:
    """Read an object that may be replaced meanwhile: all of one version, never a mixture.

    Args:
        store: Store rooted at the checkpoint's prefix.
        key: Key of the object.
        transfer: Concurrency and retries.
        known: What an earlier call returned; given back if the object is still that version.
        hook: Told of requests.

    Returns:
        The bytes and the version token.

    Raises:
        NotFoundError: There is no such object.
        CorruptCheckpointError: It is longer than any ``.metadata`` can be.
    """
    retrying = RetryingStore(store, Retrier(config=transfer.retry, hook=hook))

    if known is not None and retrying.head(key).etag == known[1]:
        return known

    def request() -> tuple[memoryview, str]:
        first = retrying.get(key, max_bytes=_FIRST_BYTES)
        size_bytes = first.meta.size_bytes
        if size_bytes > _MAX_BYTES:
            raise CorruptCheckpointError(
                f"{key} is {size_bytes} bytes long, more than any checkpoint needs",
                key=f"{store.uri}/{key}",
                hint="see who wrote it; load another checkpoint",
            )
        memory = memoryview(bytearray(size_bytes))
        memory[: len(first.data)] = first.data
        targets = [
            Target(
                key=key,
                start=start,
                nbytes=len(memory[start : start + _PIECE_BYTES]),
                memory=memory[start : start + _PIECE_BYTES],
            )
            for start in range(len(first.data), size_bytes, _PIECE_BYTES)
        ]
        try:
            Downloader(store, transfer, hook=hook).run(targets, if_match=first.meta.etag)
        except PreconditionError as error:
            raise TransientError("the object was replaced while it was read", key=key, cause=error) from error
        return memory, first.meta.etag

    return Retrier(config=transfer.retry, hook=hook).call(request, verb="read", key=key)
