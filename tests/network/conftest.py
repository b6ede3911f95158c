"""A job, its network and its server."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, RetryConfig, TransferConfig, open_store
from dcp_cloud.checkpoint.sweep import sweep
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing import FaultProxy, NetworkFault, ObjectServer
from tests.network.clouds import CLOUDS, Cloud
from tests.support.resources import open_files

# Short, so that giving up is quick; long enough for a busy machine to get through one fault of each kind.
RETRY = RetryConfig(max_attempts=10, base_delay_s=0.02, max_delay_s=0.2, total_timeout_s=60.0)


@dataclass
class Job:
    """A training job whose checkpoints go through the proxy."""

    cloud: Cloud
    proxy: FaultProxy
    server: ObjectServer
    bucket: str
    transfer: TransferConfig

    def uri(self, name: str = "run/step-1", **options: str) -> str:
        """Write the URI of a checkpoint, by way of the proxy."""
        return self.server.uri(self.bucket, name, **{**self.cloud.options, **options})

    def state(self, seed: int) -> dict[str, torch.Tensor]:
        """Make something to save."""
        generator = torch.Generator().manual_seed(seed)
        return {"w": torch.rand(self.cloud.numel, generator=generator), "b": torch.rand(7, generator=generator)}

    def save(self, state: dict[str, torch.Tensor], *faults: NetworkFault, **options: str) -> None:
        """Save under faults; raises what torch raises, with the writer closed."""
        self.proxy.set_faults(*faults)
        writer = CloudStorageWriter(self.uri(**options), transfer=self.transfer)
        try:
            dcp.save(state, storage_writer=writer)
        finally:
            self.proxy.release()
            writer.close()
            self.proxy.set_faults()

    def load(self, *faults: NetworkFault, **options: str) -> dict[str, torch.Tensor]:
        """Load under faults."""
        state = {name: torch.full_like(tensor, -1.0) for name, tensor in self.state(0).items()}
        self.proxy.set_faults(*faults)
        reader = CloudStorageReader(self.uri(**options), transfer=self.transfer)
        try:
            dcp.load(state, storage_reader=reader)
        finally:
            self.proxy.release()
            reader.close()
            self.proxy.set_faults()
        return state

    def store(self) -> ObjectStore:
        """Open the checkpoint's store."""
        return open_store(self.uri("run"))

    def contents(self) -> set[str]:
        """List what is there: objects and unfinished uploads."""
        store = self.store()
        try:
            return {meta.key for meta in store.list()} | {f"unfinished {up.key}" for up in store.list_multiparts()}
        finally:
            store.close()

    def sweep(self) -> None:
        """Sweep everything that is left, however young."""
        store = self.store()
        try:
            sweep(store, older_than_s=0.0)
        finally:
            store.close()


def cause_of(error: CheckpointException) -> BaseException:
    """Give what happened to the rank."""
    return next(iter(error.failures.values()))[0]


@pytest.fixture(params=list(CLOUDS))
def job(
    request: pytest.FixtureRequest, servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Job]:
    """A job behind a proxy, on each cloud."""
    with started_job(CLOUDS[request.param], servers, monkeypatch) as started:
        yield started


@contextmanager
def started_job(cloud: Cloud, servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Start a proxy before a server, with a bucket of its own."""
    real = servers(cloud.server)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    real.create_bucket(bucket)
    with FaultProxy(real.endpoint_url, seed=1) as proxy:
        behind = proxy.in_front_of(real)
        for name, value in behind.environment.items():
            monkeypatch.setenv(name, value)
        yield Job(cloud, proxy, behind, bucket, TransferConfig(max_concurrency=4, retry=RETRY))
    real.delete_bucket(bucket)


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Remember what this process holds now; call it at the end to assert that it holds no more."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = None

    def held() -> tuple[set[str], dict[str, int]]:
        threads = {thread.name for thread in threading.enumerate() if thread.name != "fault-proxy"}
        return threads, open_files()

    def check(proxy: FaultProxy) -> None:
        proxy.close()
        threads, files = held()
        assert before is not None
        assert threads - before[0] == set()
        assert {kind: n - before[1].get(kind, 0) for kind, n in files.items() if n > before[1].get(kind, 0)} == {}
        assert os.listdir(temporary) == []

    before = held()
    return check
