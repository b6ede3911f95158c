"""torch's experimental ``CheckpointReader`` on any object store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dcp_cloud.checkpoint.landing import LandingConfig
from dcp_cloud.checkpoint.location import StoreLike
from dcp_cloud.checkpoint.summary import SummaryCollector, TransferSummary
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import (
    BucketNotFoundError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    NotFoundError,
    OutOfRangeError,
    PreconditionError,
    UnsupportedFormatError,
)
from dcp_cloud.experimental.fill import fill_storage, fill_tensor
from dcp_cloud.experimental.index import FileIndex, read_index
from dcp_cloud.experimental.match import Matcher
from dcp_cloud.experimental.pickled import placing, read_pickle, sparse_checks, unpickle, without_data
from dcp_cloud.experimental.place import Place
from dcp_cloud.experimental.rendezvous import MANIFEST_KEY, read_manifest
from dcp_cloud.experimental.upstream import CheckpointReader, RankInfo
from dcp_cloud.format.layout import BLOCK_BYTES
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.events import EventHook, Planned, ignore_event
from dcp_cloud.transfer.retrying import RetryingStore


class CloudCheckpointReader(CheckpointReader):
    """Reads what each rank saved for itself, by this package or by torch.

    Args:
        rank_info: This rank.
        transfer: Range length, concurrency, memory, retries; wins over the URI's options.
        store: A function that makes a store from a :class:`~dcp_cloud.uri.StoreURI`, or a store for one place only.
        store_config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        safe_globals: Types to allow in the files beside those that ``torch.load(weights_only=True)`` allows.
        on_event: Told of progress and requests, from worker threads.
    """

    def __init__(
        self,
        rank_info: RankInfo,
        *,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        store_config: object = None,
        safe_globals: Sequence[Any] = (),
        on_event: EventHook | None = None,
    ) -> None:
        super().__init__(rank_info)
        self._place = Place(transfer=transfer, store=store, store_config=store_config)
        self._safe_globals = tuple(safe_globals)
        self._hook = on_event or ignore_event
        self.last_load: TransferSummary | None = None

    def read(
        self,
        path: str,
        state_dict: dict[str, Any] | None = None,
        *,
        map_location: Any = None,  # noqa: ANN401 - what torch.load takes
        **kwargs: Any,  # noqa: ANN401 - the signature of torch's class
    ) -> tuple[dict[str, Any], list[str]]:
        """Read this rank's file, whole or in part.

        Args:
            path: URI of the checkpoint.
            state_dict: What to read: its tensors are filled in place, ``None`` as a value takes what is stored. Only
                the bytes of what it names are fetched. Without it, everything is read.
            map_location: Where to put tensors that are made here, as for ``torch.load``.
            **kwargs: None are known.

        Returns:
            The state dict, and the names in it that the file does not have.

        Raises:
            CheckpointNotFoundError: There is no file of this rank.
            IncompleteCheckpointError: The save did not finish on all ranks, or was replaced by one that did not.
            CorruptCheckpointError: The stored bytes are not what was saved.
            UnsafeCheckpointError: The file names a type that is not allowed.
            StateDictMismatchError: The state dict has other types, sizes or dtypes.
            ConfigError: The path or ``map_location`` is wrong, or there are unknown arguments.
        """
        if kwargs:
            raise ConfigError(f"read() has no argument {next(iter(kwargs))!r}", hint="leave it out")
        location = self._place.go(path)
        collector = SummaryCollector("load", location.uri.root, self._hook)
        store = self._place.retrying(collector)
        error: BaseException | None = None
        try:
            index = self._open(store)
            load = _Load(location.store, location.transfer, index, collector)
            if state_dict is None:
                return load.whole(map_location, self._safe_globals), []
            return load.part(state_dict, map_location, self._safe_globals)
        except PreconditionError as caught:
            error = IncompleteCheckpointError(
                "the checkpoint was replaced while it was read", key=path, cause=caught, hint="load again"
            )
            raise error from caught
        except OutOfRangeError as caught:
            error = CorruptCheckpointError("the file of a rank is shorter than it says", key=path, cause=caught)
            raise error from caught
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.last_load = collector.end(error)

    def close(self) -> None:
        """Release connections; the reader may be used again."""
        self._place.close()

    def _open(self, store: RetryingStore) -> FileIndex:
        rank = self._rank_info.global_rank
        try:
            index = read_index(store, file_key(rank))
        except BucketNotFoundError:
            raise
        except NotFoundError as error:
            manifest = read_manifest(store)
            raise CheckpointNotFoundError(
                f"there is no file of rank {rank} here",
                key=store.uri,
                cause=error if manifest is None else f"the checkpoint was saved by {manifest.world_size} ranks",
                hint="each rank loads what the same rank saved; dcp.save and dcp.load can change the number of ranks",
            ) from error
        if index.stamp is not None and (manifest := read_manifest(store)) != index.stamp:
            raise IncompleteCheckpointError(
                "the save of this checkpoint did not finish on all ranks",
                key=store.uri,
                cause=f"there is no {MANIFEST_KEY}" if manifest is None else f"{MANIFEST_KEY} is of another save",
                hint="use an earlier checkpoint, and give every save a path of its own",
            )
        return index


class _Load:
    """One file being read.

    Args:
        store: Store rooted at the checkpoint; tries once.
        transfer: Range length, concurrency, memory, retries.
        index: The file.
        hook: Told of progress.
    """

    def __init__(self, store: ObjectStore, transfer: TransferConfig, index: FileIndex, hook: EventHook) -> None:
        self._downloader = Downloader(store, transfer, hook=hook)
        self._hook = hook
        self._index = index
        self._config = LandingConfig(
            tile_bytes=max(transfer.part_size_bytes // BLOCK_BYTES, 1) * BLOCK_BYTES,
            max_gap_bytes=transfer.gap_bytes,
        )

    def whole(self, map_location: Any, safe_globals: Sequence[Any]) -> Any:  # noqa: ANN401
        with sparse_checks() as check_sparse:
            found = unpickle(
                read_pickle(self._downloader, self._index), self._index, placing(map_location), safe_globals
            )
            key = self._index.key
            self._run(
                [
                    target
                    for empty in found.storages.values()
                    for target in fill_storage(empty, key=key, config=self._config)
                ],
                items=len(found.storages),
            )
            check_sparse()
            return found.value

    def part(
        self,
        state_dict: dict[str, Any],
        map_location: Any,  # noqa: ANN401
        safe_globals: Sequence[Any],
    ) -> tuple[dict[str, Any], list[str]]:
        with sparse_checks():
            found = unpickle(read_pickle(self._downloader, self._index), self._index, without_data, safe_globals)
        place = placing(map_location)

        def allocate(source: torch.Tensor) -> torch.Tensor:
            empty = found.storage_of(source)
            device = place(0, empty.location if empty else "cpu").device
            return torch.empty(source.shape, dtype=source.dtype, device=device)

        matcher = Matcher(allocate)
        filled = matcher.match(state_dict, found.value)
        targets: list[Target] = []
        for pair in matcher.pairs:
            empty = found.storage_of(pair.source)
            if empty is None:
                raise UnsupportedFormatError(f"{pair.name!r} has no data of its own", key=self._index.key)
            targets.extend(
                fill_tensor(
                    pair.target, pair.source, empty.record, key=self._index.key, label=pair.name, config=self._config
                )
            )
        self._run(targets, items=len(matcher.pairs))
        matcher.fill_mappings()
        return filled, matcher.missing

    def _run(self, targets: list[Target], *, items: int) -> None:
        self._hook(Planned(phase="load", size_bytes=sum(target.nbytes for target in targets), items=items))
        self._downloader.run(targets, if_match=self._index.etag)


def file_key(rank: int) -> str:
    """Name the file of a rank, as torch does.

    Args:
        rank: The global rank.

    Returns:
        Its key below the checkpoint.
    """
    return f"checkpoint_{rank}.pt"
