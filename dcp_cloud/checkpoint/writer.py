"""torch's ``StorageWriter`` on any object store."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, ClassVar

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from dcp_cloud.checkpoint.commit import (
    Before,
    check_complete,
    commit,
    delete_rank_commits,
    delete_replaced,
    is_committed,
    load_replaced_keys,
    look_before,
    object_keys,
)
from dcp_cloud.checkpoint.encode import EncodedItem, ItemEncoder, estimate_bytes
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.checkpoint.location import Location, StoreLike, URILike, is_checkpoint_uri
from dcp_cloud.checkpoint.portable import portable_errors
from dcp_cloud.checkpoint.presence import check_stored, item_end
from dcp_cloud.checkpoint.save import Save
from dcp_cloud.checkpoint.summary import SummaryCollector, TransferSummary
from dcp_cloud.checkpoint.turn import Turn
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import (
    CheckpointExistsError,
    CommitConflictError,
    DcpCloudError,
    IncompleteCheckpointError,
    TransferCancelledError,
    UnsupportedFormatError,
)
from dcp_cloud.format.layout import data_key, to_storage_info
from dcp_cloud.format.metadata import dump_metadata
from dcp_cloud.transfer.events import EventHook, PhaseDone, Planned, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.upload import ObjectUpload, Uploader

logger = logging.getLogger(__name__)

# What torch's own writer puts into Metadata.version (torch/distributed/checkpoint/filesystem.py).
_DCP_VERSION = "1.0.0"

# After these nothing of the save was committed for certain. Any other error of a commit, a refusal of its second try
# included, may hide that the first try took effect; then deleting the data would destroy the only checkpoint.
_NOT_COMMITTED = (
    IncompleteCheckpointError,
    UnsupportedFormatError,
    CommitConflictError,
    CheckpointExistsError,
    TransferCancelledError,
)


class CloudStorageWriter(StorageWriter):
    """Saves a distributed checkpoint to an object store.

    Args:
        uri: Where: ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///dir``, ``memory://name/prefix``. Options
            may follow a ``?``.
        overwrite: Whether a committed checkpoint may be replaced. It stays whole until the new one is committed.
        transfer: Part length, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the URI's place to use instead of opening one, or a function that makes one from a
            :class:`~dcp_cloud.uri.StoreURI`.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        extensions: torch's stream transforms, for example ``_extension.ZStandard()``.
        on_event: Told of progress and requests, from worker threads. In process mode it has to be picklable.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent before the save begins.
    """

    _schemes: ClassVar[Collection[str] | None] = None

    def __init__(
        self,
        uri: URILike,
        *,
        overwrite: bool = True,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        extensions: Sequence[Any] = (),
        on_event: EventHook | None = None,
    ) -> None:
        super().__init__()
        self._place = Location(uri, transfer=transfer, store=store, config=config, schemes=self._schemes)
        self._overwrite = overwrite
        self._extensions = tuple(extensions)
        self._hook = on_event or ignore_event
        self._turn = Turn(Save(self._place))
        self.last_save: TransferSummary | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A checkpoint process gets a fresh copy for every save; two copies must not share the id of a save.
        return {**self.__dict__, "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turn=Turn(Save(state["_place"])))

    @property
    def checkpoint_id(self) -> str:
        """URI of the checkpoint, without options; torch logs it and stores it."""
        return self._location.uri.root

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Tell torch whether this class can serve a checkpoint id."""
        return is_checkpoint_uri(checkpoint_id)

    def reset(self, checkpoint_id: URILike | None = None) -> None:
        """Begin a new save.

        Args:
            checkpoint_id: A new URI, or None to stay where the writer is.
        """
        with self._turn.lock:
            if checkpoint_id:
                # A copy: a save that is overtaken stays where it is.
                place = copy.copy(self._place)
                place.move(checkpoint_id)
                self._place = place
            self._turn.take(Save(self._place))

    def storage_meta(self) -> StorageMeta | None:
        """Name this save, for planners; the same goes into ``.metadata``."""
        with self._turn.lock:
            if self._turn.own.has_ended:
                self._turn.take(Save(self._place))
            return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._turn.own.save_id)

    # torch passes rank and use_collectives only to a parameter that is literally called kwargs.
    @portable_errors
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002, FBT001
        """Look at what the save would replace.

        Args:
            is_coordinator: Whether this rank commits.
            *args: Unused.
            **kwargs: ``rank`` and ``use_collectives``, from torch 2.9 on.

        Raises:
            CheckpointExistsError: A checkpoint is here and ``overwrite=False``.
            ConfigError: Another save has begun with this writer, in another thread.
        """
        with self._turn.lock:
            save = self._own_save()
            save = self._turn.take(Save(self._place) if save.has_begun else save)
            save.has_begun = True
        save.use_collectives = bool(kwargs.get("use_collectives", True))
        save.rank = _rank(kwargs.get("rank"))
        if is_coordinator or not save.use_collectives:
            with save.scope:
                save.before = self._look_before(save)

    @portable_errors
    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is: whatever it carried would be cached with it and used again by later saves."""
        return plan

    @portable_errors
    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans as they are: each rank names its own objects."""
        return plans

    @portable_errors
    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store every item of the plan.

        Args:
            plan: This rank's part of the save.
            planner: Gives the data.

        Returns:
            A completed future of one result per item.

        Raises:
            DcpCloudError: Something could not be stored; then nothing of this rank's is left in the store.
        """
        save = self._own_save()
        collector = SummaryCollector("save", self.checkpoint_id, self._hook)
        collector(Planned(phase="save", size_bytes=sum(map(estimate_bytes, plan.items)), items=len(plan.items)))
        error: BaseException | None = None
        try:
            results = self._write_items(plan, planner, save, collector)
        except BaseException as caught:
            error = caught
            raise
        finally:
            save.uploader = None
            save.has_ended = error is not None or save.before is None
            self.last_save = collector.end(error)
            if save.has_ended:
                self._turn.leave()
        summary = self.last_save
        logger.info(
            "saved %d items, %d bytes in %.1f s (%.0f MiB/s) to %s",
            summary.items,
            summary.size_bytes,
            summary.duration_s,
            summary.bytes_per_s / 2**20,
            summary.uri,
        )
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    @portable_errors
    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint: one atomic write of ``.metadata``.

        Args:
            metadata: The global metadata; it is not changed, since plan caching uses it again.
            results: Results of all ranks.

        Raises:
            IncompleteCheckpointError: A planned item has no result.
            CommitConflictError: Another job committed here since this save began.
            CheckpointExistsError: The same, with ``overwrite=False``.
        """
        save = self._own_save()
        began_s = time.monotonic()
        error: BaseException | None = None
        try:
            with save.scope:
                self._commit(metadata, results, save, self._retrying())
        except BaseException as caught:
            error = caught
            if isinstance(caught, _NOT_COMMITTED) and not save.may_be_committed:
                self._discard(results, self._retrying())
            raise
        finally:
            save.has_ended = True
            self._turn.leave()
            duration_s = time.monotonic() - began_s
            self._hook(PhaseDone(phase="commit", duration_s=duration_s, error=type(error).__name__ if error else None))
        logger.info("committed %s in %.2f s", save.location.uri.root, time.monotonic() - began_s)

    def cancel(self) -> None:
        """Give up the save under way, from any thread: it raises, nothing is committed, its uploads are aborted.

        A commit on its way is broken off too; the error says that nobody knows whether it took effect, and the data
        stays. Without a save under way nothing happens.
        """
        save = self._turn.current
        save.scope.cancel()
        if save.uploader is not None:
            save.uploader.pool.cancel()

    def close(self) -> None:
        """Release connections; the writer may be used again."""
        self._location.store.close()

    def _look_before(self, save: Save) -> Before:
        rank = None if save.use_collectives else save.rank
        return look_before(self._retrying(), rank=rank, overwrite=self._overwrite)

    def _look_at_replaced(self, save: Save, key: str) -> None:
        # What stands there may be newer than the version that the commit is conditional on; then it is refused.
        # Not by self._location: the thread that reads beside the data has begun no save of its own.
        place = save.location
        read = partial(read_object, place.store, transfer=place.transfer, hook=self._hook)
        save.replaced_keys = load_replaced_keys(read, key)
        save.knows_replaced = True

    def _describe_save(self, save_id: str) -> StorageMeta:
        """Make what ``.metadata`` says of the save as a whole."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=save_id)

    @property
    def _location(self) -> Location:
        return self._turn.own.location

    def _own_save(self) -> Save:
        return self._turn.check(
            "save has begun with the same writer",
            key=self.checkpoint_id,
            hint="wait for the future of one async_save before the next one, or use a writer for each",
        )

    def _write_items(self, plan: SavePlan, planner: SavePlanner, save: Save, hook: EventHook) -> list[WriteResult]:
        encoded: list[EncodedItem] = []
        with Uploader(self._location.store, self._location.transfer, hook=hook) as uploader:
            save.uploader = uploader
            if save.is_cancelled:
                uploader.pool.cancel()
            if save.before is not None and save.before.etag is not None:
                # Beside the data: of a large job it is hundreds of megabytes, and the commit would have to wait for it.
                uploader.pool.submit(partial(self._look_at_replaced, save, save.before.key))
            encoder = ItemEncoder(planner, self._extensions, uploader.budget)
            upload: ObjectUpload | None = None
            objects = 0
            remaining_bytes = sum(map(estimate_bytes, plan.items))
            for item in plan.items:
                item_bytes = estimate_bytes(item)
                limit = uploader.store.limits.max_object_bytes
                if upload is not None and upload.size_bytes + item_bytes > limit:
                    upload.end()
                    upload = None
                if upload is None:
                    key = data_key(save.rank, objects, save.save_id)
                    upload = uploader.begin(key, expected_bytes=min(remaining_bytes, limit))
                    objects += 1
                encoded.append(encoder.append(item, upload))
                remaining_bytes -= item_bytes
            if upload is not None:
                upload.end()
            uploader.finish()
            results = [
                WriteResult(
                    index=done.item.index, size_in_bytes=done.size_bytes, storage_data=to_storage_info(done.describe())
                )
                for done in encoded
            ]
            if len(results) != len(plan.items):
                raise IncompleteCheckpointError("not every item of the plan was stored", key=self.checkpoint_id)
        return results

    def _commit(self, metadata: Metadata, results: list[list[WriteResult]], save: Save, store: RetryingStore) -> None:
        # finish without set_up_storage_writer: somebody drives the writer by hand.
        before = save.before or self._look_before(save)
        if save.is_cancelled:
            raise TransferCancelledError("the save was cancelled, so nothing was committed", key=self.checkpoint_id)
        committed = copy.copy(metadata)
        committed.storage_data = check_complete(metadata, results, where=self.checkpoint_id)
        committed.storage_meta = self._describe_save(save.save_id)
        # An attribute rather than an argument: torch 2.6 knows no version.
        committed.version = _DCP_VERSION
        if len(results) > 1:  # one rank knows what it has stored
            check_stored(store, results, item_end, where=self.checkpoint_id)
        if before.etag is not None and not save.knows_replaced:
            self._look_at_replaced(save, before.key)
        try:
            save.may_be_committed = True
            commit(store, dump_metadata(committed), before, overwrite=self._overwrite)
        except (CommitConflictError, CheckpointExistsError):
            if not is_committed(self._read_object, before.key, committed, where=self.checkpoint_id):
                save.may_be_committed = False
                raise
        if save.replaced_keys:
            delete_replaced(store, save.replaced_keys, committed)
        if before.has_rank_commits:
            delete_rank_commits(store, self._read_object, committed)
        elif before.etag is not None and not save.use_collectives and save.rank == 0:
            delete_rank_commits(store, self._read_object, committed, from_rank=_world_size())

    def _discard(self, results: list[list[WriteResult]], store: RetryingStore) -> None:
        """Delete the data of a save that was refused; it is not named by anything."""
        stored = Metadata({})
        stored.storage_data = {result.index: result.storage_data for rank in results for result in rank}
        try:
            store.delete(sorted(object_keys(stored)))
        except DcpCloudError as error:
            logger.warning("data of the refused save remains; 'dcp-cloud sweep' will delete it: %s", error)

    def _read_object(self, key: str) -> tuple[memoryview, str]:
        return read_object(self._location.store, key, self._location.transfer, hook=self._hook)

    def _retrying(self) -> RetryingStore:
        return RetryingStore(self._location.store, Retrier(config=self._location.transfer.retry, hook=self._hook))


def _world_size() -> int:
    """Count the ranks of the job, which are at least those of the group that saves."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank(given: object) -> int:
    """Name objects by the rank that torch passes; before 2.9 it passes none."""
    if isinstance(given, int):
        return given
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
