"""Loading models from safetensors files on any object store."""

from __future__ import annotations

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from dcp_cloud.checkpoint.location import StoreLike, URILike, part_file
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CheckpointNotFoundError
from dcp_cloud.format.layout import from_storage_info, metadata_key
from dcp_cloud.format.safetensors import SUFFIX
from dcp_cloud.huggingface.catalog import build_metadata
from dcp_cloud.huggingface.files import OpenFile, check_unchanged, find_files, open_files
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore


class CloudHuggingFaceStorageReader(CloudStorageReader):
    """Loads a model from safetensors files: published ones, torch's sharded ones, and those of this package's writer.

    Headers are read first, then exactly the bytes that the targets need, straight into them. Which files make up the
    model is told by ``model.safetensors.index.json``; without it there is ``model.safetensors``, or whatever
    safetensors files lie there.

    Args:
        uri: The model's place, or the URI of one ``.safetensors`` file.
        transfer: Range length, gaps, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the model's place to use instead of opening one, or a function that makes one.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent before the load begins.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        on_event: EventHook | None = None,
    ) -> None:
        place, self._only = part_file(uri, (SUFFIX,))
        super().__init__(place, transfer=transfer, store=store, config=config, on_event=on_event)
        self._opened: dict[str, OpenFile] = {}

    def reset(self, checkpoint_id: URILike | None = None) -> None:
        """Begin a new load.

        Args:
            checkpoint_id: A new URI, or None to stay where the reader is.
        """
        with self._turn.lock:
            if checkpoint_id:
                checkpoint_id, self._only = part_file(checkpoint_id, (SUFFIX,))
            super().reset(checkpoint_id)
            self._opened = {}

    def _read_commit(self, key: str) -> Metadata:
        if key != metadata_key():
            raise CheckpointNotFoundError(
                "models in safetensors files have no part of one rank", key=self.checkpoint_id
            )
        location = self._location
        store = RetryingStore(location.store, Retrier(config=location.transfer.retry, hook=self._see))
        files = find_files(store, only=self._only)
        self._opened = open_files(location.store, files, location.transfer, hook=self._hook)
        metadata = build_metadata(files, self._opened, where=self.checkpoint_id)
        metadata.storage_meta = StorageMeta(checkpoint_id=self.checkpoint_id, load_id=self._load_id)
        return metadata

    def _fill(self, metadata: Metadata, plan: LoadPlan, planner: LoadPlanner, hook: EventHook) -> None:
        super()._fill(metadata, plan, planner, hook)
        records = metadata.storage_data or {}
        used = {from_storage_info(records[item.storage_index]).key for item in plan.items}
        check_unchanged(self._location.store, self._opened, used, self._location.transfer, hook=self._hook)
