"""The ways to save and load that are compared. Imported in each peer's own environment: nothing but torch on top."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "bucket"
# On Linux a file system in memory: what torch's own writer reaches when no disk holds it up.
LOCAL = Path("/dev/shm/dcp-cloud-bench")


@dataclass(frozen=True)
class Peer:
    """One way to save and load."""

    label: str
    package: str
    environment: str
    threads: int
    writer: Callable[[str, int], Any]
    reader: Callable[[str, int], Any]

    @property
    def python(self) -> Path:
        return ROOT / self.environment / "bin" / "python"


def _ours_writer(path: str, _threads: int) -> Any:
    from dcp_cloud import CloudStorageWriter

    return CloudStorageWriter(f"s3://{BUCKET}/{path}")


def _ours_reader(path: str, _threads: int) -> Any:
    from dcp_cloud import CloudStorageReader

    return CloudStorageReader(f"s3://{BUCKET}/{path}")


def _s3torch_writer(path: str, threads: int) -> Any:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageWriter

    return S3StorageWriter(
        region="us-east-1",
        path=f"s3://{BUCKET}/{path}",
        s3client_config=S3ClientConfig(force_path_style=True),
        thread_count=threads,
    )


def _s3torch_reader(path: str, _threads: int) -> Any:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import S3StorageReader

    return S3StorageReader(
        region="us-east-1", path=f"s3://{BUCKET}/{path}", s3client_config=S3ClientConfig(force_path_style=True)
    )


def _s3fs_writer(path: str, threads: int) -> Any:
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    return FsspecWriter(f"s3://{BUCKET}/{path}", thread_count=threads, endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def _s3fs_reader(path: str, _threads: int) -> Any:
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    return FsspecReader(f"s3://{BUCKET}/{path}", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def _msc_path(path: str) -> str:
    if "MSC_CONFIG" not in os.environ:
        config = {
            "profiles": {
                "bench": {
                    "storage_provider": {
                        "type": "s3",
                        "options": {
                            "base_path": BUCKET,
                            "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                            "region_name": "us-east-1",
                        },
                    }
                }
            }
        }
        file = Path(tempfile.mkdtemp()) / "msc.json"
        file.write_text(json.dumps(config))
        os.environ["MSC_CONFIG"] = str(file)
    return f"msc://bench/{path}"


def _msc_writer(path: str, threads: int) -> Any:
    os.environ.setdefault("MSC_TELEMETRY_DISABLED", "1")
    url = _msc_path(path)
    from multistorageclient.contrib.torch import MultiStorageFileSystemWriter

    return MultiStorageFileSystemWriter(url, thread_count=threads)


def _msc_reader(path: str, threads: int) -> Any:
    url = _msc_path(path)
    from multistorageclient.contrib.torch import MultiStorageFileSystemReader

    return MultiStorageFileSystemReader(url, thread_count=threads)


def _local_writer(path: str, threads: int) -> Any:
    from torch.distributed.checkpoint import FileSystemWriter

    return FileSystemWriter(LOCAL / path, thread_count=threads, sync_files=False)


def _local_reader(path: str, _threads: int) -> Any:
    from torch.distributed.checkpoint import FileSystemReader

    return FileSystemReader(LOCAL / path)


def _several(name: str, label: str, package: str, writer: Any, reader: Any) -> dict[str, Peer]:
    return {
        f"{name}-{threads}": Peer(
            f"{label}, {threads} thread{'s' * (threads > 1)}", package, f".venvs/peer-{name}", threads, writer, reader
        )
        for threads in (1, 4)
    }


PEERS = {
    "ours": Peer("dcp_cloud", "", ".venv", 0, _ours_writer, _ours_reader),
    **_several("s3torch", "s3torchconnector", "s3torchconnector[dcp]==1.5.0", _s3torch_writer, _s3torch_reader),
    **_several("s3fs", "FsspecWriter + s3fs", "s3fs==2026.9.0", _s3fs_writer, _s3fs_reader),
    **_several("msc", "multi-storage-client", "multi-storage-client[boto3]==1.3.1", _msc_writer, _msc_reader),
    "local": Peer("torch on tmpfs", "", ".venv", 1, _local_writer, _local_reader),
}


def clear_local() -> None:
    shutil.rmtree(LOCAL, ignore_errors=True)
