"""The lists that the conformance suite goes by: stores, servers, deviations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcp_cloud.testing.servers import server_names
from tests.conformance.conftest import stores
from tests.conformance.deviations import DEVIATIONS

_SUITE = Path(__file__).parents[1] / "conformance"
_ENDPOINTS = {
    "DCP_CLOUD_TEST_MINIO_ENDPOINT": "http://127.0.0.1:9000",
    "DCP_CLOUD_TEST_GCS_ENDPOINT": "http://127.0.0.1:4443",
    "DCP_CLOUD_TEST_AZURE_ENDPOINT": "http://127.0.0.1:10000/devstoreaccount1",
}
_PROVIDERS = {"s3", "amazon", "aws", "gcs", "google", "azure", *server_names(_ENDPOINTS)}


@pytest.mark.parametrize("environment", [{}, _ENDPOINTS], ids=["local", "external"])
def test_every_server_is_tested_under_one_name(environment: dict[str, str]):
    """A server that runs elsewhere takes the place of the local one, or joins; none is tested twice, none left out."""
    servers = [server for server in stores(environment).values() if server is not None]
    assert sorted(servers) == sorted(server_names(environment))
    assert ("minio" in servers) is bool(environment)


def test_every_deviation_is_of_a_store_and_a_test_that_there_are():
    """A line of the table that nothing applies to says nothing."""
    sources = [path.read_text(encoding="utf-8") for path in _SUITE.glob("test_*.py")]
    tests = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)}
    assert {store for store, _ in DEVIATIONS} <= set(stores(_ENDPOINTS))
    assert {test for _, test in DEVIATIONS} <= tests


@pytest.mark.parametrize("path", sorted(_SUITE.glob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_of_the_suite_names_a_provider(path: Path):
    """What is asked of one store is asked of all; what one server does otherwise stands in the table."""
    text = path.read_text(encoding="utf-8").lower()
    assert not {name for name in _PROVIDERS if name in text}


def test_a_server_that_joins_is_tested_with_checkpoints_too():
    """MinIO, once its endpoint is given, is among the places that saves, loads and crashes are tested on."""
    script = "from tests.checkpoint.conftest import CLOUDS, SERVERS; print(*CLOUDS, '/', *SERVERS)"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=_SUITE.parents[1],
        env=os.environ | _ENDPOINTS,
        capture_output=True,
        text=True,
        check=False,
    )
    clouds, _, servers = ran.stdout.partition("/")
    assert "minio" in clouds.split(), ran.stderr
    assert servers.split() == list(server_names(_ENDPOINTS))
