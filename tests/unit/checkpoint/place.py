"""A place in memory to save to and load from, and the error that a user finds in what torch raises."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.format.metadata import dump_metadata
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing import Fault, FaultyStore, RecordingStore

URI = "memory://somewhere/run"
TRANSFER = TransferConfig(retry=RetryConfig(max_attempts=3, base_delay_s=0, max_delay_s=0))


def new_store() -> MemoryStore:
    return MemoryStore(uuid.uuid4().hex)


def faulty(store: ObjectStore, *faults: Fault) -> FaultyStore:
    return FaultyStore(store, faults)


def writer(store: ObjectStore, **options: Any) -> CloudStorageWriter:
    return CloudStorageWriter(URI, store=store, **({"transfer": TRANSFER} | options))


def reader(store: ObjectStore, **options: Any) -> CloudStorageReader:
    return CloudStorageReader(URI, store=store, **({"transfer": TRANSFER} | options))


def save(state: dict[str, Any], store: ObjectStore, planner: dcp.SavePlanner | None = None, **options: Any) -> None:
    dcp.save(state, storage_writer=writer(store, **options), planner=planner)


def load(state: dict[str, Any], store: ObjectStore, planner: dcp.LoadPlanner | None = None, **options: Any) -> None:
    dcp.load(state, storage_reader=reader(store, **options), planner=planner)


def failure(call: Callable[..., object], *args: Any, **options: Any) -> BaseException:
    """Call dcp.save or dcp.load, and give the error of the one rank."""
    with pytest.raises(CheckpointException) as caught:
        call(*args, **options)
    error: BaseException = caught.value.failures[0][0]
    return error


def keys(store: ObjectStore) -> set[str]:
    return {meta.key for meta in store.list()}


def rewrite_metadata(store: ObjectStore, change: Callable[[Metadata], None]) -> None:
    """Change what .metadata says."""
    metadata = reader(store).read_metadata()
    change(metadata)
    store.put(".metadata", [memoryview(dump_metadata(metadata))])


def reads(store: RecordingStore) -> list[int]:
    """Give the lengths of the ranged reads."""
    return [call.size_bytes for call in store.calls if call.verb == "get_range"]
