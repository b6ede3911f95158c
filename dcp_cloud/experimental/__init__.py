"""torch's experimental checkpointers (``torch.distributed.checkpoint._experimental``) on object stores.

::

    checkpointer = make_cloud_sync_checkpointer()
    checkpointer.save("s3://bucket/run/step-100", state_dict)
    state_dict = checkpointer.load("s3://bucket/run/step-100")

Each rank saves one file and loads the same file again: there is no resharding.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcp_cloud.experimental.checkpointers import (
        CloudAsyncCheckpointer,
        CloudCheckpointProcess,
        CloudSyncCheckpointer,
        make_cloud_async_checkpointer,
        make_cloud_sync_checkpointer,
    )
    from dcp_cloud.experimental.reader import CloudCheckpointReader
    from dcp_cloud.experimental.writer import CloudCheckpointWriter

__all__ = [
    "CloudAsyncCheckpointer",
    "CloudCheckpointProcess",
    "CloudCheckpointReader",
    "CloudCheckpointWriter",
    "CloudSyncCheckpointer",
    "make_cloud_async_checkpointer",
    "make_cloud_sync_checkpointer",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on first use: an older torch lacks what they are built on, and other modules here need none of it.
    return getattr(importlib.import_module(f"{__name__}.checkpointers"), name)
