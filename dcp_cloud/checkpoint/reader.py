"""torch's ``StorageReader`` on any object store."""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from dcp_cloud.checkpoint.catalog import explain_absence
from dcp_cloud.checkpoint.fetch import read_object
from dcp_cloud.checkpoint.fill import PlanFiller
from dcp_cloud.checkpoint.location import Location, StoreLike, URILike, is_checkpoint_uri
from dcp_cloud.checkpoint.portable import portable_errors
from dcp_cloud.checkpoint.summary import SummaryCollector, TransferSummary
from dcp_cloud.checkpoint.tiling import check_tiling
from dcp_cloud.checkpoint.turn import Turn
from dcp_cloud.config import KIB, MIB, TransferConfig
from dcp_cloud.errors import (
    BucketNotFoundError,
    CheckpointError,
    CheckpointNotFoundError,
    CommitConflictError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    NotFoundError,
    OutOfRangeError,
)
from dcp_cloud.format.layout import metadata_key, rank_of_metadata_key
from dcp_cloud.format.metadata import load_metadata
from dcp_cloud.format.shapes import check_shapes
from dcp_cloud.transfer.events import EventHook, RequestDone, TransferEvent, ignore_event

logger = logging.getLogger(__name__)

# What one connection brings within a cloud: 85 to 90 MB/s by Amazon's performance guide.
_CONNECTION_BYTES_PER_S = 90_000_000
# Whatever was measured once on a busy machine, a gap stays within these.
_MIN_GAP_BYTES = 64 * KIB
_MAX_GAP_BYTES = 4 * MIB


class CloudStorageReader(StorageReader):
    """Loads a distributed checkpoint from an object store, whoever wrote it.

    Args:
        uri: Where: ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///dir``, ``memory://name/prefix``.
        transfer: Range length, gaps, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the URI's place to use instead of opening one, or a function that makes one from a
            :class:`~dcp_cloud.uri.StoreURI`.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        extension_registry: torch's registry of stream transforms, for checkpoints with transforms of your own.
        allow_global: Allows further classes in ``.metadata``: called with module and name, returns the object to use
            or None. For planners that put types of their own there, and for values that are no tensors.
        unsafe_metadata: Load ``.metadata`` with the plain unpickler, which runs whatever code it holds. Only for
            buckets that nobody else can write.
        unsafe_values: Hand values that are no tensors to the load planner without looking into them; torch's own
            opens them without restriction. Only for buckets that nobody else can write.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent before the load begins.
    """

    _schemes: ClassVar[Collection[str] | None] = None

    def __init__(
        self,
        uri: URILike,
        *,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        extension_registry: Any = None,  # noqa: ANN401 - torch 2.6 has no such class
        allow_global: Callable[[str, str], object | None] | None = None,
        unsafe_metadata: bool = False,
        unsafe_values: bool = False,
        on_event: EventHook | None = None,
    ) -> None:
        super().__init__()
        self._location = Location(uri, transfer=transfer, store=store, config=config, schemes=self._schemes)
        self._registry = extension_registry
        self._allow_global = allow_global
        self._unsafe_metadata = unsafe_metadata
        self._unsafe_values = unsafe_values
        self._hook = on_event or ignore_event
        self._turn = Turn(uuid.uuid4().hex)
        self._metadata: Metadata | None = None
        self._failure: Exception | None = None
        self._is_rank_local = False
        # load_sharded_optimizer_state_dict reads the metadata twice; these are its bytes, kept until the data is read.
        self._commits: dict[str, tuple[memoryview, str]] = {}
        self._first_byte_s: float | None = None
        self.last_load: TransferSummary | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_commits": {}, "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turn=Turn(uuid.uuid4().hex))

    @property
    def checkpoint_id(self) -> str:
        """URI of the checkpoint, without options; torch logs it."""
        return self._location.uri.root

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Tell torch whether this class can serve a checkpoint id."""
        return is_checkpoint_uri(checkpoint_id)

    def reset(self, checkpoint_id: URILike | None = None) -> None:
        """Begin a new load.

        Args:
            checkpoint_id: A new URI, or None to stay where the reader is.
        """
        with self._turn.lock:
            self._turn.take(uuid.uuid4().hex)
            if checkpoint_id:
                self._location.move(checkpoint_id)
                self._commits = {}
            self._metadata = None
            self._failure = None

    # torch passes the rank only to a parameter that is literally called kwargs.
    @portable_errors
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401, ARG002
        """Read the commit.

        Args:
            *args: Unused.
            **kwargs: ``rank``: read that rank's own commit, of a save without collectives.

        Returns:
            The metadata. With ``rank``, an empty one if there is no checkpoint at all: torch would bury an error from
            here in an ``AssertionError``, so the error is raised by ``set_up_storage_reader``.

        Raises:
            CheckpointNotFoundError: Nothing was committed here.
            IncompleteCheckpointError: There are data objects, but no commit.
            CorruptCheckpointError: ``.metadata`` is damaged.
            UnsafeCheckpointError: ``.metadata`` names something that may not be loaded.
            StoreError: The store refused.
        """
        rank = kwargs.get("rank")
        failure, self._failure = self._failure, None
        if rank is None:
            try:
                return self._read_commit(metadata_key())
            except Exception as error:  # whatever it is: only a missing commit may send a rank to its own one
                self._failure = error
                raise
        if failure is None or isinstance(failure, (CheckpointNotFoundError, IncompleteCheckpointError)):
            try:
                return self._read_commit(metadata_key(rank))
            except Exception as error:
                # Of two ways in which nothing was found, the global one says more.
                failure = failure if isinstance(error, CheckpointNotFoundError) and failure else error
        logger.error("cannot load %s: %s", self.checkpoint_id, failure)
        self._failure = failure
        return Metadata(state_dict_metadata={}, planner_data={}, storage_data={})

    @portable_errors
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002, FBT001
        """Take the metadata to load by.

        Args:
            metadata: What ``read_metadata`` returned.
            is_coordinator: Unused.
            *args: Unused.
            **kwargs: Unused.

        Raises:
            ConfigError: Another load has begun with this reader, in another thread.
            Exception: Why ``read_metadata`` found no checkpoint.
        """
        self._check_turn()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        self._metadata = metadata
        self._is_rank_local = not kwargs.get("use_collectives", True)

    @portable_errors
    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Tell the coordinator which save this rank is about to load: each rank has read ``.metadata`` by itself."""
        self._check_turn()
        return dataclasses.replace(plan, storage_data=self._save_seen())

    @portable_errors
    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """See that all ranks load the same save.

        Args:
            plans: The plans of all ranks.

        Returns:
            The plans as they are.

        Raises:
            CommitConflictError: Another job replaced the checkpoint while the ranks read ``.metadata``.
        """
        if len({plan.storage_data for plan in plans if isinstance(plan.storage_data, str)}) > 1:
            raise CommitConflictError(
                "the checkpoint was replaced while the load began, and ranks saw different ones",
                key=self.checkpoint_id,
                hint="load again",
            )
        return plans

    @portable_errors
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill every target of the plan.

        Args:
            plan: This rank's part of the load.
            planner: Gives the targets.

        Returns:
            A completed future.

        Raises:
            CorruptCheckpointError: Stored bytes are not what was saved.
            IncompleteCheckpointError: An object that the checkpoint names is gone.
            ConfigError: Another load has begun with this reader, in another thread.
            StoreError: The store refused.
        """
        self._check_turn()
        if self._metadata is None:
            self._metadata = self.read_metadata()
        collector = SummaryCollector("load", self.checkpoint_id, self._hook)
        error: BaseException | None = None
        try:
            self._commits = {}
            self.fill(self._metadata, plan, planner, hook=collector)
            self._check_turn()  # whoever came meanwhile may have moved the reader under this load's feet
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.last_load = collector.end(error)
            self._turn.leave()
        summary = self.last_load
        logger.info(
            "loaded %d items, %d bytes in %.1f s (%.0f MiB/s) from %s",
            summary.items,
            summary.size_bytes,
            summary.duration_s,
            summary.bytes_per_s / 2**20,
            summary.uri,
        )
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def close(self) -> None:
        """Release connections; the reader may be used again."""
        self._location.store.close()

    def fill(self, metadata: Metadata, plan: LoadPlan, planner: LoadPlanner, *, hook: EventHook) -> None:
        """Fill the targets of any plan, for whoever reads a checkpoint piece by piece.

        Args:
            metadata: What ``read_metadata`` returned.
            plan: What to read.
            planner: Gives the targets.
            hook: Told of progress and requests.

        Raises:
            CorruptCheckpointError: Stored bytes are not what was saved.
            IncompleteCheckpointError: An object that the checkpoint names is gone.
            StoreError: The store refused.
        """
        try:
            self._fill(metadata, plan, planner, hook)
        except BucketNotFoundError:
            raise
        except CheckpointError as error:
            if error.key is not None and "://" not in error.key:
                error.key = self._location.uri.locate(error.key).root
            raise
        except OutOfRangeError as error:
            raise CorruptCheckpointError(
                "an object is shorter than the checkpoint says",
                key=self._location.uri.locate(error.key or "").root,
                cause=error,
                hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
            ) from error
        except NotFoundError as error:
            raise IncompleteCheckpointError(
                "an object that the checkpoint names is gone",
                key=self._location.uri.locate(error.key or "").root,
                cause=error,
                hint="if the checkpoint was just replaced by another job, load again; else 'dcp-cloud verify' it",
            ) from error

    def _fill(self, metadata: Metadata, plan: LoadPlan, planner: LoadPlanner, hook: EventHook) -> None:
        filler = PlanFiller(
            self._location.store,
            self._transfer(),
            metadata,
            planner,
            self._registry,
            hook=hook,
            allow_global=self._allow_global,
            unsafe_values=self._unsafe_values,
        )
        filler.fill(plan)

    @property
    def _load_id(self) -> str:
        return self._turn.own

    def _check_turn(self) -> None:
        self._turn.check(
            "load has begun with the same reader",
            key=self.checkpoint_id,
            hint="use a reader for each thread",
        )

    def _save_seen(self) -> str | None:
        """Name the save that is being loaded; None if whoever wrote it gave it no name."""
        if self._is_rank_local:  # each rank's own commit has its own id
            return "rank-local"
        return getattr(getattr(self._metadata, "storage_meta", None), "save_id", None)

    def _read_commit(self, key: str) -> Metadata:
        try:
            commit = read_object(
                self._location.store, key, self._location.transfer, known=self._commits.get(key), hook=self._see
            )
        except BucketNotFoundError:
            raise
        except NotFoundError as error:
            raise explain_absence(self._location.store, uri=self.checkpoint_id, cause=error) from error
        self._commits[key] = commit
        metadata = load_metadata(
            commit[0],
            key=f"{self.checkpoint_id}/{key}",
            extra_allowed=self._allow_global,
            unsafe=self._unsafe_metadata,
        )
        check_shapes(metadata, key=f"{self.checkpoint_id}/{key}")
        # A rank's own commit lists the chunks of that rank only.
        has_holes = rank_of_metadata_key(key) is not None
        check_tiling(metadata, key=f"{self.checkpoint_id}/{key}", may_have_holes=has_holes)
        meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        meta.load_id = self._load_id
        meta.checkpoint_id = self.checkpoint_id  # where it is read; a copy still names the place of its original
        metadata.storage_meta = meta
        return metadata

    def _see(self, event: TransferEvent) -> None:
        """Learn from the request for ``.metadata`` how long a first byte takes here."""
        if isinstance(event, RequestDone) and event.verb == "get" and event.error is None:
            self._first_byte_s = event.duration_s
        self._hook(event)

    def _transfer(self) -> TransferConfig:
        """Give the settings, with a gap that costs as much time as the request it saves."""
        transfer = self._location.transfer
        if transfer.max_gap_bytes is not None or self._first_byte_s is None:
            return transfer
        gap_bytes = int(self._first_byte_s * _CONNECTION_BYTES_PER_S)
        return dataclasses.replace(transfer, max_gap_bytes=min(max(gap_bytes, _MIN_GAP_BYTES), _MAX_GAP_BYTES))
