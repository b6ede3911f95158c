from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "boto3", "botocore", "google", "azure", "urllib3", "requests", "moto", "typer", "rich"}


def imported_by(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter; give the names of all packages that it imported."""
    script = f"{statement}\nimport json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "import dcp_cloud",
        "import dcp_cloud; dir(dcp_cloud); hasattr(dcp_cloud, 'nothing')",
        "import dcp_cloud.transfer.upload, dcp_cloud.transfer.download, dcp_cloud.stores.memory",
        "from dcp_cloud import open_store; open_store('memory://m').put('k', [])",
        "from dcp_cloud import open_store; open_store('/tmp')",
        "from dcp_cloud import S3Config, AzureConfig, GCSConfig, TransferConfig, StoreURI, DcpCloudError",
        "import dcp_cloud.testing.wrappers",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(statement: str) -> None:
    """torch takes seconds and an SDK may not be installed: neither is imported until a class that needs it is used."""
    assert imported_by(statement) & HEAVY == set()


def test_a_writer_imports_torch_and_no_sdk() -> None:
    """The classes for torch bring torch; the provider's SDK comes when its store is opened."""
    found = imported_by("from dcp_cloud import CloudStorageWriter, S3StorageWriter, AzureStorageReader")
    assert "torch" in found
    assert found & {"boto3", "google.cloud", "azure"} == set()


def test_an_s3_store_imports_its_own_sdk_only() -> None:
    """One provider's user needs one provider's SDK."""
    found = imported_by("from dcp_cloud import open_store; open_store('s3://b/p?region=us-east-1')")
    assert found & {"torch", "google", "azure"} == set()


@pytest.mark.parametrize(
    ("provider", "sdk"), [("s3", {"boto3", "botocore"}), ("gcs", {"google"}), ("azure", {"azure"}), ("local", set())]
)
def test_a_provider_knows_no_other_one(provider: str, sdk: set[str]) -> None:
    """Files of one provider's store import no file of another one and no other one's SDK, not even within functions."""
    files = [path for path in (ROOT / "dcp_cloud/stores").glob("*.py") if path.stem.partition("_")[0] == provider]
    assert len(files) > 3
    others = {"s3", "gcs", "azure", "local"} - {provider}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in {"boto3", "botocore", "google", "azure"} - sdk, (path.name, name)
                store = name.removeprefix("dcp_cloud.stores.").partition("_")[0]
                assert not (name.startswith("dcp_cloud.stores.") and store in others), (path.name, name)


def test_imports_go_only_downwards() -> None:
    """The floors of the house, and who may import an SDK or torch, are contracts that hold."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
