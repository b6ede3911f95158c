"""Reading what is in a checkpoint from its commit and one listing; no tensor is loaded.

Works for every writer of torch's layout. Nothing that a commit says is trusted: a record that makes no sense is listed
as damage beside those that do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from dcp_cloud.checkpoint.catalog import CheckpointState, explain_absence
from dcp_cloud.checkpoint.entries import CheckpointContents, Damage, ObjectEntry, Shard, TensorEntry, natural
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import BucketNotFoundError, CheckpointError, CorruptCheckpointError, NotFoundError
from dcp_cloud.format.layout import METADATA_KEY, StoredItem, from_storage_info, rank_of_metadata_key
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.stores.base import ObjectMeta, ObjectStore
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

_RANK = re.compile(r"(?:^|/)__(\d{1,18})_\d+[^/]*$")


def read_contents(
    store: ObjectStore,
    *,
    transfer: TransferConfig | None = None,
    allow_global: Callable[[str, str], object | None] | None = None,
    unsafe_metadata: bool = False,
    on_damaged_commit: Callable[[str, CheckpointError], None] | None = None,
    hook: EventHook = ignore_event,
) -> CheckpointContents:
    """Read what is in a checkpoint.

    Args:
        store: Store rooted at the checkpoint.
        transfer: Concurrency and retries.
        allow_global: Allows further names in ``.metadata``: gets module and name, returns the object or None.
        unsafe_metadata: Load ``.metadata`` with the plain unpickler, which runs whatever code it holds.
        on_damaged_commit: Told of a commit that cannot be read, by key, instead of an error.
        hook: Told of requests.

    Returns:
        The contents; data objects may still be damaged or missing.

    Raises:
        CheckpointNotFoundError: Nothing was committed here.
        IncompleteCheckpointError: There are data objects, but no commit.
        CorruptCheckpointError: A commit is damaged.
        UnsafeCheckpointError: A commit names something that may not be loaded.
        StoreError: The store refused.
    """
    config = transfer or TransferConfig()
    retrying = RetryingStore(store, Retrier(config=config.retry, hook=hook))
    absent: NotFoundError | None = None
    data: dict[str, memoryview] = {}
    try:
        data[METADATA_KEY] = read_object(store, METADATA_KEY, config, hook=hook)[0]
    except BucketNotFoundError:
        raise
    except NotFoundError as error:
        absent = error
    listed = {meta.key: meta for meta in retrying.list()}
    if absent is not None:
        keys = sorted(key for key in listed if rank_of_metadata_key(key) is not None)
        if not keys:
            raise explain_absence(store, uri=store.uri, cause=absent) from absent
        data = {key: read_object(store, key, config, hook=hook)[0] for key in keys}
    commits: dict[str, Metadata] = {}
    for key, pickled in data.items():
        try:
            commits[key] = load_metadata(
                pickled, key=f"{store.uri}/{key}", extra_allowed=allow_global, unsafe=unsafe_metadata
            )
        except CheckpointError as error:
            if on_damaged_commit is None:
                raise
            on_damaged_commit(key, error)
    state: CheckpointState = "complete" if absent is None else "rank-local"
    return _assemble(store.uri, state, commits, {key: len(pickled) for key, pickled in data.items()}, listed)


def _assemble(
    uri: str,
    state: CheckpointState,
    commits: Mapping[str, Metadata],
    commit_bytes: Mapping[str, int],
    listed: Mapping[str, ObjectMeta],
) -> CheckpointContents:
    tensors: list[TensorEntry] = []
    values: list[Shard] = []
    damage: list[Damage] = []
    for key, metadata in commits.items():
        reader = _CommitReader(metadata, key, rank_of_metadata_key(key), damage)
        reader.read(tensors, values)
    tensors.sort(key=lambda entry: (natural(entry.fqn), entry.commit_rank or 0))
    values.sort(key=lambda entry: (natural(entry.fqn), entry.rank or 0))
    objects = _objects((shard for entry in tensors for shard in entry.shards), values, listed)
    named = {entry.key for entry in objects}.union(commit_bytes)
    times = [listed[key].modified_at for key in commit_bytes if key in listed]
    first = next(iter(commits.values()), None)
    return CheckpointContents(
        uri=uri,
        state=state,
        save_id=_text(getattr(getattr(first, "storage_meta", None), "save_id", None)),
        version=_text(getattr(first, "version", None)),
        committed_at=max((time for time in times if time is not None), default=None),
        commits=tuple(commit_bytes),
        commit_bytes=sum(commit_bytes.values()),
        tensors=tuple(tensors),
        values=tuple(values),
        objects=tuple(objects),
        unnamed=tuple(meta for key, meta in sorted(listed.items()) if key not in named),
        damage=tuple(damage),
    )


class _CommitReader:
    """Turns one commit into entries."""

    def __init__(self, metadata: Metadata, key: str, rank: int | None, damage: list[Damage]) -> None:
        self._metadata = metadata
        self._key = key
        self._rank = rank
        self._damage = damage
        self._records: Mapping[Any, Any] = metadata.storage_data or {}

    def read(self, tensors: list[TensorEntry], values: list[Shard]) -> None:
        for fqn, entry in self._metadata.state_dict_metadata.items():
            if isinstance(entry, BytesStorageMetadata):
                values.append(self._value(fqn))
                continue
            try:
                tensors.append(self._tensor(fqn, entry))
            except (CorruptCheckpointError, AttributeError, TypeError) as error:
                cause = error.cause if isinstance(error, CorruptCheckpointError) else str(error)
                self._damage.append(Damage(fqn=str(fqn), key=self._key, cause=cause or str(error)))

    def _tensor(self, fqn: str, entry: TensorStorageMetadata) -> TensorEntry:
        dtype = entry.properties.dtype
        if not isinstance(dtype, torch.dtype):
            raise _senseless(self._key, f"the dtype of {fqn!r} is a {type(dtype).__name__}")
        shape = _lengths(entry.size, fqn, self._key)
        shards = [self._chunk(fqn, chunk, len(shape), dtype) for chunk in entry.chunks]
        return TensorEntry(
            fqn=fqn,
            shape=shape,
            dtype=dtype,
            size_bytes=sum(shard.size_bytes for shard in shards),
            shards=tuple(sorted(shards, key=lambda shard: shard.offsets)),
            commit_rank=self._rank,
        )

    def _chunk(self, fqn: str, chunk: ChunkStorageMetadata, dims: int, dtype: torch.dtype) -> Shard:
        offsets, sizes = _lengths(chunk.offsets, fqn, self._key), _lengths(chunk.sizes, fqn, self._key)
        if not len(offsets) == len(sizes) == dims:
            raise _senseless(self._key, f"a chunk of {fqn!r} has another number of dimensions")
        stored = self._find(fqn, MetadataIndex(fqn, chunk.offsets))
        return Shard(
            fqn=fqn,
            stored=stored,
            rank=_rank_of(stored),
            offsets=offsets,
            sizes=sizes,
            size_bytes=math.prod(sizes) * dtype.itemsize,
            is_tensor=True,
        )

    def _value(self, fqn: str) -> Shard:
        stored = self._find(fqn, MetadataIndex(fqn))
        size_bytes = stored.size_bytes if stored is not None else 0
        return Shard(
            fqn=fqn,
            stored=stored,
            rank=_rank_of(stored),
            offsets=(),
            sizes=(),
            size_bytes=size_bytes,
            is_tensor=False,
        )

    def _find(self, fqn: str, index: MetadataIndex) -> StoredItem | None:
        info = self._records.get(index)
        where = f" at {list(index.offset)}" if index.offset else ""
        if info is None:
            self._damage.append(
                Damage(fqn=fqn, key=self._key, cause=f"the commit does not say where its data is{where}")
            )
            return None
        try:
            return from_storage_info(info)
        except CorruptCheckpointError as error:
            self._damage.append(Damage(fqn=fqn, key=error.key or self._key, cause=f"{error.cause}{where}"))
            return None


def _objects(chunks: Iterable[Shard], values: Iterable[Shard], listed: Mapping[str, ObjectMeta]) -> list[ObjectEntry]:
    sums: dict[str, tuple[int, int]] = {}
    for shard in (*chunks, *values):
        if shard.stored is not None:
            items, size_bytes = sums.get(shard.stored.key, (0, 0))
            sums[shard.stored.key] = (items + 1, size_bytes + shard.stored.size_bytes)
    return [
        ObjectEntry(
            key=key,
            size_bytes=listed[key].size_bytes if key in listed else None,
            items=items,
            items_bytes=size_bytes,
        )
        for key, (items, size_bytes) in sorted(sums.items(), key=lambda entry: natural(entry[0]))
    ]


def _lengths(values: Iterable[Any], fqn: str, key: str) -> tuple[int, ...]:
    lengths = tuple(values)
    for length in lengths:
        if type(length) is not int:  # not shown: writing out shared lists can take for ever
            raise _senseless(key, f"a size or offset of {fqn!r} is no length but a {type(length).__name__}")
        if not 0 <= length < 2**63:
            raise _senseless(key, f"a size or offset of {fqn!r} is no length")
    return lengths


def _rank_of(stored: StoredItem | None) -> int | None:
    match = _RANK.search(stored.key) if stored is not None else None
    return int(match[1]) if match is not None else None


def _senseless(key: str, cause: str) -> CorruptCheckpointError:
    return CorruptCheckpointError("the checkpoint's .metadata is damaged", key=key, cause=cause)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
