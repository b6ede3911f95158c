"""Save and load PyTorch Distributed Checkpoints directly on object stores.

::

    import torch.distributed.checkpoint as dcp
    from dcp_cloud import CloudStorageReader, CloudStorageWriter

    dcp.save(state_dict, storage_writer=CloudStorageWriter("s3://bucket/run/step-100"))
    dcp.load(state_dict, storage_reader=CloudStorageReader("s3://bucket/run/step-100"))
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcp_cloud.autoselect import install, uninstall
    from dcp_cloud.checkpoint.checkpointer import CloudCheckpointer
    from dcp_cloud.checkpoint.planner import CloudLoadPlanner
    from dcp_cloud.checkpoint.providers import (
        AzureStorageReader,
        AzureStorageWriter,
        GCSStorageReader,
        GCSStorageWriter,
        S3StorageReader,
        S3StorageWriter,
    )
    from dcp_cloud.checkpoint.reader import CloudStorageReader
    from dcp_cloud.checkpoint.summary import TransferSummary
    from dcp_cloud.checkpoint.writer import CloudStorageWriter
    from dcp_cloud.config import RetryConfig, TransferConfig
    from dcp_cloud.convert.format_utils import dcp_to_torch_save, torch_save_to_dcp
    from dcp_cloud.convert.run import ConversionSummary, convert_checkpoint
    from dcp_cloud.convert.torch_reader import CloudTorchSaveReader
    from dcp_cloud.errors import DcpCloudError
    from dcp_cloud.experimental.checkpointers import (
        CloudAsyncCheckpointer,
        CloudSyncCheckpointer,
        make_cloud_async_checkpointer,
        make_cloud_sync_checkpointer,
    )
    from dcp_cloud.experimental.reader import CloudCheckpointReader
    from dcp_cloud.experimental.writer import CloudCheckpointWriter
    from dcp_cloud.huggingface.consolidate import consolidate_safetensors
    from dcp_cloud.huggingface.quantized import CloudQuantizedHuggingFaceStorageReader
    from dcp_cloud.huggingface.reader import CloudHuggingFaceStorageReader
    from dcp_cloud.huggingface.writer import CloudHuggingFaceStorageWriter
    from dcp_cloud.manager.manager import CheckpointManager
    from dcp_cloud.stores.azure_config import AzureConfig
    from dcp_cloud.stores.base import ObjectStore
    from dcp_cloud.stores.gcs_config import GCSConfig
    from dcp_cloud.stores.registry import open_store
    from dcp_cloud.stores.s3_config import S3Config
    from dcp_cloud.uri import StoreURI

__all__ = [
    "AzureConfig",
    "AzureStorageReader",
    "AzureStorageWriter",
    "CheckpointManager",
    "CloudAsyncCheckpointer",
    "CloudCheckpointReader",
    "CloudCheckpointWriter",
    "CloudCheckpointer",
    "CloudHuggingFaceStorageReader",
    "CloudHuggingFaceStorageWriter",
    "CloudLoadPlanner",
    "CloudQuantizedHuggingFaceStorageReader",
    "CloudStorageReader",
    "CloudStorageWriter",
    "CloudSyncCheckpointer",
    "CloudTorchSaveReader",
    "ConversionSummary",
    "DcpCloudError",
    "GCSConfig",
    "GCSStorageReader",
    "GCSStorageWriter",
    "ObjectStore",
    "RetryConfig",
    "S3Config",
    "S3StorageReader",
    "S3StorageWriter",
    "StoreURI",
    "TransferConfig",
    "TransferSummary",
    "consolidate_safetensors",
    "convert_checkpoint",
    "dcp_to_torch_save",
    "install",
    "make_cloud_async_checkpointer",
    "make_cloud_sync_checkpointer",
    "open_store",
    "torch_save_to_dcp",
    "uninstall",
]

# Loaded on first use: the command line and the stores do without torch, which takes seconds to import.
_HOMES: Mapping[str, str] = MappingProxyType(
    {
        "AzureConfig": "dcp_cloud.stores.azure_config",
        "AzureStorageReader": "dcp_cloud.checkpoint.providers",
        "AzureStorageWriter": "dcp_cloud.checkpoint.providers",
        "CheckpointManager": "dcp_cloud.manager.manager",
        "CloudAsyncCheckpointer": "dcp_cloud.experimental.checkpointers",
        "CloudCheckpointReader": "dcp_cloud.experimental.reader",
        "CloudCheckpointWriter": "dcp_cloud.experimental.writer",
        "CloudCheckpointer": "dcp_cloud.checkpoint.checkpointer",
        "CloudHuggingFaceStorageReader": "dcp_cloud.huggingface.reader",
        "CloudHuggingFaceStorageWriter": "dcp_cloud.huggingface.writer",
        "CloudLoadPlanner": "dcp_cloud.checkpoint.planner",
        "CloudQuantizedHuggingFaceStorageReader": "dcp_cloud.huggingface.quantized",
        "CloudStorageReader": "dcp_cloud.checkpoint.reader",
        "CloudStorageWriter": "dcp_cloud.checkpoint.writer",
        "CloudSyncCheckpointer": "dcp_cloud.experimental.checkpointers",
        "CloudTorchSaveReader": "dcp_cloud.convert.torch_reader",
        "ConversionSummary": "dcp_cloud.convert.run",
        "DcpCloudError": "dcp_cloud.errors",
        "GCSConfig": "dcp_cloud.stores.gcs_config",
        "GCSStorageReader": "dcp_cloud.checkpoint.providers",
        "GCSStorageWriter": "dcp_cloud.checkpoint.providers",
        "ObjectStore": "dcp_cloud.stores.base",
        "RetryConfig": "dcp_cloud.config",
        "S3Config": "dcp_cloud.stores.s3_config",
        "S3StorageReader": "dcp_cloud.checkpoint.providers",
        "S3StorageWriter": "dcp_cloud.checkpoint.providers",
        "StoreURI": "dcp_cloud.uri",
        "TransferConfig": "dcp_cloud.config",
        "TransferSummary": "dcp_cloud.checkpoint.summary",
        "consolidate_safetensors": "dcp_cloud.huggingface.consolidate",
        "convert_checkpoint": "dcp_cloud.convert.run",
        "dcp_to_torch_save": "dcp_cloud.convert.format_utils",
        "install": "dcp_cloud.autoselect",
        "make_cloud_async_checkpointer": "dcp_cloud.experimental.checkpointers",
        "make_cloud_sync_checkpointer": "dcp_cloud.experimental.checkpointers",
        "open_store": "dcp_cloud.stores.registry",
        "torch_save_to_dcp": "dcp_cloud.convert.format_utils",
        "uninstall": "dcp_cloud.autoselect",
    }
)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
