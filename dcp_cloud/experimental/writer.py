"""torch's experimental ``CheckpointWriter`` on any object store."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from typing import Any

import torch.distributed as dist

from dcp_cloud.checkpoint.location import Location, StoreLike
from dcp_cloud.checkpoint.summary import SummaryCollector, TransferSummary
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError, DcpCloudError
from dcp_cloud.experimental.emit import emit_state, estimate_state_bytes
from dcp_cloud.experimental.place import Place
from dcp_cloud.experimental.reader import file_key
from dcp_cloud.experimental.rendezvous import Rendezvous, Stamp
from dcp_cloud.experimental.upstream import Barrier, CheckpointWriter, CheckpointWriterConfig, RankInfo, WriterHook
from dcp_cloud.transfer.events import EventHook, Planned, ignore_event
from dcp_cloud.transfer.upload import Uploader

logger = logging.getLogger(__name__)


class CloudCheckpointWriter(CheckpointWriter):
    """Saves each rank's state dict as ``checkpoint_{rank}.pt``, a file that ``torch.load`` opens.

    ``write`` returns when the files of all ranks are stored and the checkpoint is committed, and raises on every rank
    if one of them failed. Give every save a path of its own: a file has the same name in every save, so a save to the
    path of an older one replaces it file by file, and loads are refused until the last rank is done.

    Args:
        config: torch's settings; ``write_barrier_timeout_secs`` is how long to wait for the other ranks.
        rank_info: This rank.
        barrier: A barrier of torch's to go through before the commit. None is needed: the ranks meet in the store.
        commit_hook: Told before and after the commit.
        run_id: Text that is the same on all ranks and different in every run. By default the ranks agree on one through
            the default process group, so all of them have to make their writers.
        transfer: Part length, concurrency, memory, retries; wins over the URI's options.
        store: A function that makes a store from a :class:`~dcp_cloud.uri.StoreURI`, or a store for one place only.
        store_config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        ConfigError: There are several ranks, and neither a ``run_id`` nor a process group.
    """

    def __init__(
        self,
        config: CheckpointWriterConfig,
        rank_info: RankInfo,
        barrier: Barrier | None = None,
        commit_hook: WriterHook | None = None,
        *,
        run_id: str | None = None,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        store_config: object = None,
        on_event: EventHook | None = None,
    ) -> None:
        super().__init__(config, rank_info, barrier, commit_hook)
        self._run_id = run_id or agree_on_run_id(rank_info)
        self._place = Place(transfer=transfer, store=store, store_config=store_config)
        self._hook = on_event or ignore_event
        self._saves: Counter[str] = Counter()
        self.last_save: TransferSummary | None = None

    def write(self, path: str, state_dict: dict[str, Any], **kwargs: Any) -> None:  # noqa: ANN401 - for the hook
        """Save this rank's state dict; all ranks have to.

        Args:
            path: URI of the checkpoint.
            state_dict: Anything that ``torch.save`` can save. It must not change until this returns.
            **kwargs: For the hook.

        Raises:
            IncompleteCheckpointError: Another rank failed or did not come; nothing was committed.
            DcpCloudError: This rank's file could not be stored; nothing of it is left.
        """
        location = self._place.go(path)
        rank, root = self._rank_info.global_rank, location.uri.root
        stamp = Stamp(save_id=f"{self._run_id}-{self._saves[root]}", world_size=self._rank_info.global_world_size)
        self._saves[root] += 1
        collector = SummaryCollector("save", root, self._hook)
        rendezvous = Rendezvous(
            store=self._place.retrying(collector),
            stamp=stamp,
            rank=rank,
            timeout_s=self._config.write_barrier_timeout_secs,
        )
        error: BaseException | None = None
        try:
            _store_file(location, file_key(rank), state_dict, stamp, collector)
            if self._commit_hook is not None:
                self._commit_hook.pre_commit(path, **kwargs)
            rendezvous.announce()
            if self._barrier is not None:
                self._barrier.execute_barrier()
            rendezvous.commit()
        except BaseException as caught:
            error = caught
            _tell(rendezvous, caught)
            raise
        finally:
            self.last_save = collector.end(error)
        rendezvous.clean_up()
        if self._commit_hook is not None:
            self._commit_hook.post_commit(path, **kwargs)
        logger.info("saved %d bytes of rank %d to %s", self.last_save.size_bytes, rank, root)

    def close(self) -> None:
        """Release connections; the writer may be used again."""
        super().close()
        self._place.close()


def agree_on_run_id(rank_info: RankInfo) -> str:
    """Find a text that is the same on all ranks and different in every run; all ranks have to call this.

    Args:
        rank_info: This rank.

    Returns:
        The first rank's choice.

    Raises:
        ConfigError: There are several ranks and no process group.
    """
    chosen: list[Any] = [uuid.uuid4().hex]
    if rank_info.global_world_size == 1:
        return str(chosen[0])
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            f"{rank_info.global_world_size} ranks cannot agree on the id of their saves without a process group",
            hint="initialise torch.distributed first, or pass run_id=, the same new text on all ranks",
        )
    dist.broadcast_object_list(chosen, src=0)
    return str(chosen[0])


def _store_file(
    location: Location, key: str, state_dict: dict[str, Any], stamp: Stamp, collector: SummaryCollector
) -> None:
    expected_bytes = estimate_state_bytes(state_dict)
    collector(Planned(phase="save", size_bytes=expected_bytes, items=1))
    with Uploader(location.store, location.transfer, hook=collector) as uploader:
        upload = uploader.begin(key, expected_bytes=expected_bytes)
        emit_state(state_dict, upload, uploader.budget, stamp=stamp.dump())
        upload.end()
        uploader.finish()


def _tell(rendezvous: Rendezvous, error: BaseException) -> None:
    try:
        rendezvous.announce_failure(error)
    except DcpCloudError as unheard:
        logger.warning("the other ranks could not be told of the failure and will wait: %s", unheard)
