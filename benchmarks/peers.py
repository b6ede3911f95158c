"""The ways to save and load that are compared. Imported in each peer's own environment: nothing but torch on top."""

from __future__ import annotations

import base64
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


def _ours(name: str, scheme: str) -> Callable[[str, int], Any]:
    """Make our writer or reader for the sink as one of the clouds."""

    def make(path: str, _threads: int) -> Any:
        import dcp_cloud

        url = os.environ["SINK_URL"]
        config: Any = None
        if scheme == "gs":
            config = dcp_cloud.GCSConfig(endpoint_url=url, anonymous=True)
        elif scheme == "az":
            config = dcp_cloud.AzureConfig(account="account", account_url=f"{url}/account", anonymous=True)
        return getattr(dcp_cloud, name)(f"{scheme}://{BUCKET}/{path}", config=config)

    return make


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


def _fsspec(name: str, scheme: str) -> Callable[[str, int], Any]:
    """Make torch's writer or reader on fsspec for the sink as one of the clouds."""

    def make(path: str, threads: int) -> Any:
        from torch.distributed.checkpoint import _fsspec_filesystem

        url = os.environ["SINK_URL"]
        options: dict[str, Any] = {"thread_count": threads} if name == "FsspecWriter" else {}
        if scheme == "s3":
            options |= {"endpoint_url": url}
        elif scheme == "gs":
            # Otherwise every call waits a minute for a gRPC service.
            os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
            options |= {"endpoint_url": url, "token": "anon"}
        else:
            key = base64.b64encode(b"key").decode()
            account = f"AccountName=account;AccountKey={key};BlobEndpoint={url}/account"
            options |= {"connection_string": f"DefaultEndpointsProtocol=http;{account}"}
        return getattr(_fsspec_filesystem, name)(f"{scheme}://{BUCKET}/{path}", **options)

    return make


def _msc_path(path: str) -> str:
    if "MSC_CONFIG" not in os.environ:
        config = {
            "profiles": {
                "bench": {
                    "storage_provider": {
                        "type": "s3",
                        "options": {
                            "base_path": BUCKET,
                            "endpoint_url": os.environ["SINK_URL"],
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
    "ours": Peer("dcp_cloud", "", ".venv", 0, _ours("CloudStorageWriter", "s3"), _ours("CloudStorageReader", "s3")),
    **_several("s3torch", "s3torchconnector", "s3torchconnector[dcp]==1.5.0", _s3torch_writer, _s3torch_reader),
    **_several(
        "s3fs",
        "FsspecWriter + s3fs",
        "s3fs==2026.9.0",
        _fsspec("FsspecWriter", "s3"),
        _fsspec("FsspecReader", "s3"),
    ),
    **_several("msc", "multi-storage-client", "multi-storage-client[boto3]==1.3.1", _msc_writer, _msc_reader),
    "local": Peer("torch on tmpfs", "", ".venv", 1, _local_writer, _local_reader),
    "ours-gcs": Peer(
        "dcp_cloud, Google", "", ".venv", 0, _ours("CloudStorageWriter", "gs"), _ours("CloudStorageReader", "gs")
    ),
    **_several(
        "gcsfs",
        "FsspecWriter + gcsfs",
        "gcsfs==2026.10.1",
        _fsspec("FsspecWriter", "gs"),
        _fsspec("FsspecReader", "gs"),
    ),
    "ours-azure": Peer(
        "dcp_cloud, Azure", "", ".venv", 0, _ours("CloudStorageWriter", "az"), _ours("CloudStorageReader", "az")
    ),
    **_several(
        "adlfs",
        "FsspecWriter + adlfs",
        "adlfs==2026.8.0",
        _fsspec("FsspecWriter", "az"),
        _fsspec("FsspecReader", "az"),
    ),
}


def clear_local() -> None:
    shutil.rmtree(LOCAL, ignore_errors=True)
