"""Saving models as safetensors files on any object store."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from dcp_cloud.checkpoint.commit import Before, check_complete
from dcp_cloud.checkpoint.location import StoreLike, URILike
from dcp_cloud.checkpoint.portable import portable_errors
from dcp_cloud.checkpoint.presence import check_stored
from dcp_cloud.checkpoint.save import Save
from dcp_cloud.checkpoint.staging import row_major_blocks
from dcp_cloud.checkpoint.writer import CloudStorageWriter
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CheckpointError, ConfigError, TransferCancelledError, UnsupportedFormatError
from dcp_cloud.format.safetensors import emit_header, file_order
from dcp_cloud.huggingface.commit import (
    commit_key,
    delete_leftovers,
    index_document,
    look_for_model,
    publish,
    shards_document,
    withdraw,
)
from dcp_cloud.huggingface.consolidate import merge_shards
from dcp_cloud.huggingface.export import FileSplit
from dcp_cloud.huggingface.naming import SHARDED_DIRECTORY, FileRecord
from dcp_cloud.huggingface.plan import FilePlanner, PlannedFile, spec_of
from dcp_cloud.huggingface.reader import CloudHuggingFaceStorageReader
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader

_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


class CloudHuggingFaceStorageWriter(CloudStorageWriter):
    """Saves a model as safetensors files.

    Whole tensors go to ``model-00001-of-0000n.safetensors`` …, and ``model.safetensors.index.json``, written last, says
    where each one is. With ``save_distributed`` each rank stores its shards in a file of its own, as torch's writer
    does; ``dcp_cloud.shards.json``, written last, lists them. Bytes go from tensor memory to the store without a copy.

    Args:
        uri: The model's place.
        fqn_to_index_mapping: Tensor to number of its file, from 1 on; one file without it.
        save_distributed: Store shards as they are. Otherwise every tensor of the state dict has to be whole.
        enable_consolidation: Store the shards below ``sharded/`` and merge them into files of whole tensors when the
            save ends. The coordinator does that alone; for large models call ``consolidate_safetensors`` afterwards.
        overwrite: Whether a model that is there may be replaced. Its files have the same names, so unlike a checkpoint
            of ``CloudStorageWriter`` it is gone from the moment the new files begin to be written.
        transfer: Part length, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the model's place to use instead of opening one, or a function that makes one.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent before the save begins.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        fqn_to_index_mapping: Mapping[str, int] | None = None,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        overwrite: bool = True,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        on_event: EventHook | None = None,
    ) -> None:
        super().__init__(uri, overwrite=overwrite, transfer=transfer, store=store, config=config, on_event=on_event)
        if enable_consolidation and not save_distributed:
            raise ConfigError(
                "enable_consolidation=True has nothing to consolidate", hint="pass save_distributed=True too"
            )
        for name, number in (fqn_to_index_mapping or {}).items():
            if type(number) is not int or not 1 <= number <= 99_999:
                raise ConfigError(f"the file number {number!r} of {name!r} is out of range", hint="count from 1 on")
        self._numbers = None if fqn_to_index_mapping is None else dict(fqn_to_index_mapping)
        self._files = FilePlanner(self._numbers)
        self._is_sharded = save_distributed
        self._consolidates = enable_consolidation

    @portable_errors
    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuse what safetensors files cannot hold.

        Args:
            plan: This rank's plan.

        Returns:
            The same plan.

        Raises:
            UnsupportedFormatError: The state dict holds values that are no tensors, or unknown dtypes.
            ConfigError: A tensor is sharded without ``save_distributed``, or has no file.
        """
        self._files.check(plan.items, may_be_shards=self._is_sharded)
        return plan

    @portable_errors
    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the files of all ranks, and withdraw the commit of the model that is replaced.

        Args:
            plans: The plans of all ranks.

        Returns:
            The plans with the names of their files.
        """
        withdraw(self._retrying_data(), self._own_save().replaced_keys)
        if self._is_sharded:
            return plans
        names = self._files.whole_files(plans)
        return [dataclasses.replace(plan, storage_data=files) for plan, files in zip(plans, names, strict=True)]

    def _look_before(self, save: Save) -> Before:
        if not save.use_collectives:
            raise ConfigError(
                "models in safetensors files are saved with collectives only",
                cause="one commit has to name the files of all ranks",
                hint="leave out use_collectives=False, or use CloudStorageWriter",
            )
        if self._consolidates:
            look_for_model(self._retrying(), overwrite=self._overwrite)
        save.replaced_keys = look_for_model(self._retrying_data(), overwrite=self._overwrite)
        return Before(key=commit_key(is_sharded=self._is_sharded), etag=None)

    def _write_items(self, plan: SavePlan, planner: SavePlanner, save: Save, hook: EventHook) -> list[WriteResult]:
        if self._is_sharded:
            files = self._files.shard_files(plan.items, save.rank)
        else:
            files = self._files.files(plan.items, plan.storage_data or {})
        results: list[WriteResult] = []
        with Uploader(self._data_store(), self._location.transfer, hook=hook) as uploader:
            save.uploader = uploader
            if save.is_cancelled:
                uploader.pool.cancel()
            for file in files:
                results += self._write_file(file, planner, uploader)
            uploader.finish()
        return results

    def _write_file(self, file: PlannedFile, planner: SavePlanner, uploader: Uploader) -> list[WriteResult]:
        items = {item.index.fqn: item for item in file.items}
        specs = file_order(map(spec_of, file.items))
        file_id = uuid.uuid4().hex
        header = emit_header(specs, file.metadata(file_id, is_sharded=self._is_sharded))
        size_bytes = len(header) + sum(spec.nbytes for spec in specs)
        if size_bytes > uploader.store.limits.max_object_bytes:
            raise ConfigError(
                f"{file.name} would be longer than the store's objects may be",
                key=self.checkpoint_id,
                cause=f"{size_bytes} bytes",
                hint="spread the tensors over more files with fqn_to_index_mapping",
            )
        upload = uploader.begin(file.name, expected_bytes=size_bytes)
        upload.append(Span.of(header))
        results = []
        for spec in specs:
            item = items[spec.name]
            for block in row_major_blocks(_resolve(item, planner)):
                upload.append(block)
            record = FileRecord(name=file.name, file_id=file_id, size_bytes=spec.nbytes)
            results.append(WriteResult(index=item.index, size_in_bytes=spec.nbytes, storage_data=record))
        upload.end()
        return results

    def _commit(self, metadata: Metadata, results: list[list[WriteResult]], save: Save, store: RetryingStore) -> None:  # noqa: ARG002
        if save.is_cancelled:
            raise TransferCancelledError("the save was cancelled, so nothing was committed", key=self.checkpoint_id)
        placed = check_complete(metadata, results, where=self.checkpoint_id)
        data = self._retrying_data()
        if len(results) > 1:
            check_stored(data, results, lambda record: (record.name, record.size_bytes), where=self.checkpoint_id)
        if self._is_sharded:
            document = shards_document(placed.values())
        else:
            document = index_document({index.fqn: record for index, record in placed.items()})
        publish(data, commit_key(is_sharded=self._is_sharded), document, overwrite=self._overwrite)
        delete_leftovers(data, save.replaced_keys, {record.name for record in placed.values()})
        if self._consolidates:
            place = self._location
            reader = CloudHuggingFaceStorageReader(
                place.uri.child(SHARDED_DIRECTORY), transfer=place.transfer, store=data.store, on_event=self._hook
            )
            merge_shards(
                reader, place, split=FileSplit(numbers=self._numbers), overwrite=self._overwrite, hook=self._hook
            )

    def _discard(self, results: list[list[WriteResult]], store: RetryingStore) -> None:
        """Leave the files of a save that was refused: another job's may have the same names."""

    def _data_store(self) -> ObjectStore:
        store = self._location.store
        return PrefixStore(store, SHARDED_DIRECTORY) if self._consolidates else store

    def _retrying_data(self) -> RetryingStore:
        return RetryingStore(self._data_store(), Retrier(config=self._location.transfer.retry, hook=self._hook))


def _resolve(item: WriteItem, planner: SavePlanner) -> torch.Tensor:
    data = planner.resolve_data(item)
    data = data.to_local() if isinstance(data, DTensor) else data
    spec = spec_of(item)
    if not isinstance(data, torch.Tensor) or (data.dtype, tuple(data.shape)) != (spec.dtype, spec.shape):
        raise CheckpointError(
            f"the planner gave another tensor for {spec.name!r} than it planned",
            hint="look at the resolve_data method of the save planner",
        )
    if type(data) not in _PLAIN_TYPES or data.layout is not torch.strided or data.device.type == "meta":
        raise UnsupportedFormatError(
            f"{spec.name!r} cannot be stored",
            cause=f"type {type(data).__name__}, layout {data.layout}, device {data.device.type}",
            hint="make it a plain tensor first",
        )
    return data
