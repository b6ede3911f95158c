"""What this package needs of ``torch.distributed.checkpoint._experimental``, looked for in one place."""

from __future__ import annotations

from dcp_cloud.errors import MissingExtraError

try:
    from torch.distributed.checkpoint._experimental.barriers import Barrier, create_barrier_from_config
    from torch.distributed.checkpoint._experimental.checkpoint_process import CheckpointProcess, CheckpointProcessConfig
    from torch.distributed.checkpoint._experimental.checkpoint_reader import CheckpointReader
    from torch.distributed.checkpoint._experimental.checkpoint_writer import (
        CheckpointWriter,
        CheckpointWriterConfig,
        WriterHook,
    )
    from torch.distributed.checkpoint._experimental.checkpointer import AsyncCheckpointer, SyncCheckpointer
    from torch.distributed.checkpoint._experimental.config import CheckpointerConfig
    from torch.distributed.checkpoint._experimental.staging import CheckpointStagerConfig, DefaultStager
    from torch.distributed.checkpoint._experimental.types import RankInfo
    from torch.distributed.checkpoint._experimental.utils import wrap_future
except ImportError as error:
    raise MissingExtraError(
        "this version of torch has no torch.distributed.checkpoint._experimental that this package knows",
        cause=error,
        hint="update torch (2.13 and 2.15 have it, 2.6 has not), or use dcp.save with CloudStorageWriter",
    ) from error

__all__ = [
    "AsyncCheckpointer",
    "Barrier",
    "CheckpointProcess",
    "CheckpointProcessConfig",
    "CheckpointReader",
    "CheckpointStagerConfig",
    "CheckpointWriter",
    "CheckpointWriterConfig",
    "CheckpointerConfig",
    "DefaultStager",
    "RankInfo",
    "SyncCheckpointer",
    "WriterHook",
    "create_barrier_from_config",
    "wrap_future",
]
