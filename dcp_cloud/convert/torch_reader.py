"""Loading files of ``torch.save`` as if they were distributed checkpoints: by ranges, into sharded targets."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_cloud.checkpoint.landing import extent_bytes
from dcp_cloud.checkpoint.location import StoreLike, URILike, part_file
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.config import TransferConfig
from dcp_cloud.convert.forms import TORCH_SUFFIXES
from dcp_cloud.errors import (
    BucketNotFoundError,
    CheckpointNotFoundError,
    ConfigError,
    IncompleteCheckpointError,
    NotFoundError,
    PreconditionError,
    UnsupportedFormatError,
)
from dcp_cloud.experimental.index import FileIndex, Record, read_index
from dcp_cloud.experimental.pickled import (
    Empty,
    Unpickled,
    hides_tensors,
    read_pickle,
    sparse_checks,
    unpickle,
    without_data,
)
from dcp_cloud.format.archive import is_row_major
from dcp_cloud.format.layout import PAGE_BYTES, RawData, StoredItem, metadata_key, to_storage_info
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


@dataclass(slots=True)
class _Contents:
    """What the file of the load under way holds.

    Args:
        index: Its records.
        values: Flattened name to value, for values that are no tensors.
        records: Tensor to its record.
        crc32: Checksums of tensors that fill their record and are too long to be verified by each read.
        unchecked: Records whose own headers have not been looked at.
    """

    index: FileIndex
    values: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    crc32: dict[str, int] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)


class CloudTorchSaveReader(CloudStorageReader):
    """Loads a file that ``torch.save`` wrote through ``torch.distributed.checkpoint.load``.

    Every rank reads the file's table of contents and then exactly the bytes of its own shards, where torch's
    ``BroadcastingTorchSaveReader`` reads all of it on one rank and sends all of it to all others. Any load planner
    will do, torch's ``DynamicMetaLoadPlanner`` among them; values that are no tensors load too.

    Args:
        uri: URI of the file, which ends in ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``.
        allow_unsafe_pickle: Run whatever code the file holds, as ``torch.load(weights_only=False)`` does. Otherwise
            types that are not known to be harmless are refused.
        safe_globals: Types that the file may use besides those that ``torch.load(weights_only=True)`` allows.
        transfer: Range length, gaps, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the file's directory to use instead of opening one, or a function that makes one.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent before the load begins.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        allow_unsafe_pickle: bool = False,
        safe_globals: Sequence[Any] = (),
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        on_event: EventHook | None = None,
    ) -> None:
        place, self._name = _file(uri)
        super().__init__(place, transfer=transfer, store=store, config=config, on_event=on_event)
        self._allow_unsafe_pickle = allow_unsafe_pickle
        self._safe_globals = tuple(safe_globals)
        self._contents: _Contents | None = None

    @property
    def checkpoint_id(self) -> str:
        """URI of the file, without options."""
        return self._location.uri.child(self._name).root

    def reset(self, checkpoint_id: URILike | None = None) -> None:
        """Begin a new load.

        Args:
            checkpoint_id: URI of another file, or None for the same.
        """
        with self._turn.lock:
            if checkpoint_id:
                checkpoint_id, self._name = _file(checkpoint_id)
            super().reset(checkpoint_id)
            self._contents = None

    @property
    def tensor_crc32(self) -> dict[str, int]:
        """Checksums of tensors that are too long to be verified by each read of a part, by name."""
        return {} if self._contents is None else self._contents.crc32

    def value_of(self, name: str) -> object:
        """Give a value that is no tensor, after ``read_metadata``.

        Args:
            name: Its flattened name.

        Raises:
            UnsupportedFormatError: There are tensors in it. They were read without data.
        """
        assert self._contents is not None  # noqa: S101 - the caller has read the metadata
        value = self._contents.values[name]
        if hides_tensors(value):
            raise UnsupportedFormatError(
                f"{name!r} cannot be read by itself",
                key=self.checkpoint_id,
                cause=f"it is a {type(value).__name__} that holds tensors",
                hint="load the file with torch.load and save these tensors in dicts or lists",
            )
        return value

    def _read_commit(self, key: str) -> Metadata:
        if key != metadata_key():
            raise CheckpointNotFoundError("a file of torch.save has no part of one rank", key=self.checkpoint_id)
        location = self._location
        store = RetryingStore(location.store, Retrier(config=location.transfer.retry, hook=self._see))
        try:
            index = read_index(store, self._name)
            pickled = read_pickle(Downloader(location.store, location.transfer, hook=self._hook), index)
        except BucketNotFoundError:
            raise
        except NotFoundError as error:
            raise CheckpointNotFoundError("there is no such file", key=self.checkpoint_id, cause=error) from error
        except PreconditionError as error:
            raise self._replaced(error) from error
        with sparse_checks():
            found = unpickle(pickled, index, without_data, self._safe_globals, unsafe=self._allow_unsafe_pickle)
        if not isinstance(found.value, dict):
            raise UnsupportedFormatError(
                "the file holds no state dict",
                key=self.checkpoint_id,
                cause=f"it is a {type(found.value).__name__}",
                hint="save model.state_dict(), not the model",
            )
        self._contents = _Contents(index)
        metadata = self._describe(found, self._contents)
        metadata.storage_meta = StorageMeta(checkpoint_id=self.checkpoint_id, load_id=self._load_id)
        return metadata

    def _describe(self, found: Unpickled, contents: _Contents) -> Metadata:
        flat, mappings = flatten_state_dict(found.value)
        metadata = Metadata(state_dict_metadata={}, planner_data=mappings, storage_data={})
        for name, value in flat.items():
            if not isinstance(value, torch.Tensor):
                contents.values[name] = value
                metadata.state_dict_metadata[name] = BytesStorageMetadata()
                continue
            empty = found.storage_of(value) if value.layout is torch.strided else None
            if (
                empty is None
                or type(value) not in _PLAIN_TYPES
                or value.is_quantized
                or value.is_conj()
                or value.is_neg()
            ):
                raise UnsupportedFormatError(
                    f"{name!r} cannot be read by ranges",
                    key=self.checkpoint_id,
                    cause=f"type {type(value).__name__}, layout {value.layout}, or conjugated, negated, quantised",
                    hint="load the file with torch.load and save plain tensors",
                )
            shape = torch.Size(value.shape)
            chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
            properties = TensorProperties(dtype=value.dtype)
            metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, shape, [chunk])
            item = _item(self._name, name, value.detach(), empty, contents)
            metadata.storage_data[MetadataIndex(name, chunk.offsets)] = to_storage_info(item)
        return metadata

    def _fill(self, metadata: Metadata, plan: LoadPlan, planner: LoadPlanner, hook: EventHook) -> None:
        contents = self._contents
        assert contents is not None  # noqa: S101 - the plan was made from its metadata
        location = self._location
        values = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        tensors = [_of_whole(item) for item in plan.items if item.type != LoadItemType.BYTE_IO]
        # What the table of contents says is compared with what stands before the bytes themselves, once.
        used = {item.storage_index.fqn for item in tensors} & contents.unchecked
        headers = {contents.records[name].header_offset: contents.records[name] for name in used}
        targets: list[Target] = [record.header_target(self._name) for record in headers.values()]
        try:
            Downloader(location.store, location.transfer, hook=self._hook).run(targets, if_match=contents.index.etag)
            contents.unchecked -= used
            super()._fill(metadata, dataclasses.replace(plan, items=tensors), planner, hook)
            if (
                RetryingStore(location.store, Retrier(config=location.transfer.retry, hook=self._hook))
                .head(self._name)
                .etag
                != contents.index.etag
            ):
                raise self._replaced("its version changed during the load")
        except PreconditionError as error:
            raise self._replaced(error) from error
        for item in values:
            stream = io.BytesIO()
            torch.save(self.value_of(item.storage_index.fqn), stream)
            stream.seek(0)
            planner.load_bytes(item, stream)

    def _replaced(self, cause: str | BaseException) -> IncompleteCheckpointError:
        return IncompleteCheckpointError(
            "the file was replaced while it was read", key=self.checkpoint_id, cause=cause, hint="load again"
        )


def _file(uri: URILike) -> tuple[Any, str]:
    place, name = part_file(uri, TORCH_SUFFIXES)
    if name is None:
        raise ConfigError(
            "the URI names no file of torch.save",
            key=place.root,
            hint=f"its name has to end in one of {', '.join(TORCH_SUFFIXES)}",
        )
    return place, name


def _of_whole(item: ReadItem) -> ReadItem:
    """Count from the start of the whole tensor: DynamicMetaLoadPlanner takes each rank's shard for what is stored."""
    at = item.storage_index.offset
    if at is None or not any(at):
        return item
    offsets = torch.Size([begin + offset for begin, offset in zip(at, item.storage_offsets, strict=True)])
    index = MetadataIndex(item.storage_index.fqn, torch.Size([0] * len(at)))
    return dataclasses.replace(item, storage_index=index, storage_offsets=offsets)


def _item(key: str, name: str, tensor: torch.Tensor, empty: Empty, contents: _Contents) -> StoredItem:
    record = empty.record
    skipped_bytes = int(tensor.storage_offset()) * tensor.itemsize
    shape, strides = tuple(tensor.shape), tensor.stride()
    row_major = is_row_major(shape, strides)
    nbytes = extent_bytes(tensor)
    is_whole = row_major and nbytes == record.nbytes
    crc32 = record.crc32 if is_whole else None
    if crc32 is not None and nbytes > PAGE_BYTES:  # a part cannot be verified by it
        contents.crc32[name] = crc32
        crc32 = None
    contents.records[name] = record
    contents.unchecked.add(name)
    raw = RawData(
        offset=record.start + skipped_bytes,
        size_bytes=nbytes,
        strides=None if row_major else strides,
        crc32=crc32,
    )
    return StoredItem(key=key, offset=record.start, size_bytes=record.nbytes, raw=raw)
